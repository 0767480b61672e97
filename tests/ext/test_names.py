"""The public names, where they are and where earlier versions had them."""

import pickle

import pytest

import dadl_ext

# Pickles name a class by its module.
MODULES_OF_0_1 = {
    "losses": ["PseudoGroupContrastLoss", "RankSimLoss", "SupervisedContrastLoss"],
    "chi_model": ["ChiModelLoss", "DisagreementLoss", "DropoutDisagreementLoss", "GradientReversal"],
    "class_queue": ["ClassQueue"],
}


@pytest.mark.parametrize("module", MODULES_OF_0_1)
def test_pickles_of_earlier_versions_load(module: str) -> None:
    for name in MODULES_OF_0_1[module]:
        assert pickle.loads(f"cdadl_ext.{module}\n{name}\n.".encode()) is getattr(dadl_ext, name)


def test_functional_and_reference_have_the_same_functions() -> None:
    # The reversal of gradients is plain PyTorch: it is its own reference.
    assert {*dadl_ext.functional.__all__} == {*dadl_ext.reference.__all__, "reverse_gradient"}
    for package in (dadl_ext, dadl_ext.functional, dadl_ext.reference):
        for name in package.__all__:
            assert hasattr(package, name)
