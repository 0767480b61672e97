"""``ImbalancedRegressor`` is an estimator of scikit-learn, and does what the recipe does."""

import pickle

import numpy as np
import pytest
import torch
from dadl import ImbalancedRegressor
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

SMALL = {"epochs": 3, "hidden": 8, "random_state": 0}


@parametrize_with_checks([ImbalancedRegressor(epochs=15, batch_size=32)])
def test_it_is_an_estimator(estimator: ImbalancedRegressor, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    features = np.random.default_rng(0).normal(size=(60, 2))
    return features, np.exp(features[:, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"reweighting": "inverse", "lds": True},
        {"fds": True},
        {"ranksim": 0.1, "rnc": 0.1},
        {"loss": "bmc"},
        {"target_transform": "log"},
    ],
    ids=str,
)
def test_every_parameter_reaches_the_training(samples: tuple[np.ndarray, np.ndarray], options: dict) -> None:
    plain, other = ImbalancedRegressor(**SMALL).fit(*samples), ImbalancedRegressor(**SMALL, **options).fit(*samples)
    assert not np.array_equal(plain.predict(samples[0]), other.predict(samples[0]))
    again = pickle.loads(pickle.dumps(clone(other).fit(*samples)))
    assert np.array_equal(again.predict(samples[0]), other.predict(samples[0]))


def test_the_global_random_numbers_stay(samples: tuple[np.ndarray, np.ndarray]) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    ImbalancedRegressor(**SMALL).fit(*samples)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_parameters_are_checked(samples: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="lds smooths the counts of a reweighting"):
        ImbalancedRegressor(lds=True).fit(*samples)
    with pytest.raises(ValueError, match="epochs is 0"):
        ImbalancedRegressor(epochs=0).fit(*samples)
