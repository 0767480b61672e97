"""Folders of comparisons as `dadl compare` leaves them, with results that are made up rather than trained."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

Array = npt.NDArray[np.float64]
EPOCHS = 6
LIMITS = (100, 20)
BINS = (0.0, 100.0, 20)


def regression_comparison(
    folder: Path,
    arms: Mapping[str, Mapping[str, float]],
    *,
    seeds: int = 4,
    splits: int = 1,
    trials: int = 3,
    without: tuple[tuple[str, int, int], ...] = (),
) -> Path:
    """Arms of an imbalanced regression, by what they add to the error in each region.

    ``without``: runs (arm, split, seed) that are not there. Unknown to the arms, half of the noise is the same for all.
    """
    settings = {"data": "houses.csv", "target": "price", "features": ["*"], "epochs": EPOCHS, "keep": "best"}
    overrides = {name: {"lds": True, "reweighting": "sqrt-inverse"} if "LDS" in name else {} for name in arms}
    _write_plan(folder, settings | {"criterion": "few MAE"}, overrides, seeds=seeds, splits=splits, trials=trials)
    for split in range(splits):
        draw = np.random.default_rng(split)
        train = np.concatenate([draw.normal(35, 7, 1500), draw.uniform(0, 100, 100)]).clip(0, 99.9)
        target = np.concatenate([draw.normal(35, 7, 300), draw.uniform(0, 100, 80)]).clip(0, 99.9)
        counts = np.histogram(train, BINS[2], BINS[:2])[0]
        regions = _regions(counts)
        numbers = (target // 5).astype(int)
        facts = {"bins": BINS, "counts": counts.tolist(), "limits": LIMITS}
        sizes = {
            region: {
                "test": int(chosen[numbers].sum()),
                "train": int(counts[chosen].sum()),
                "labels": [[5.0 * float(chosen.nonzero()[0].min()), 5.0 * float(chosen.nonzero()[0].max()) + 5]],
            }
            for region, chosen in regions.items()
        }
        hard = draw.normal(0, 1, len(target))  # the same in all trainings
        for a, (arm, effects) in enumerate(arms.items()):
            place = folder / _slug(arm) / f"split-{split}"
            for trial in range(trials):
                _write_log(place / f"trial-{trial}", settings, a + trial)
            for seed in range(1, 1 + seeds):
                if (arm, split, seed) in without:
                    continue
                own = np.random.default_rng((split, seed, a))
                size = np.abs(3 + 2 * hard + own.normal(0, 1, len(target))) + 0.05 * np.abs(target - 35)
                for region, effect in effects.items():
                    size = np.where(regions[region][numbers], np.abs(size + effect + own.normal(0, 0.1)), size)
                prediction = target + size * own.choice([-1.0, 1.0], len(target))
                error = np.abs(prediction - target)
                scores = {
                    region: {"MAE": _mean(error[chosen[numbers]]), "MSE": _mean(error[chosen[numbers]] ** 2)}
                    for region, chosen in regions.items()
                }
                history = _write_log(place / f"seed-{seed}", settings, 10 * a + seed)
                results = {
                    "recipe": "ranksim",
                    "settings": settings | overrides[arm] | {"seed": seed, "split_seed": split, "lr": 0.001 * (a + 1)},
                    "facts": facts,
                    "regions": sizes,
                    "samples": {"train": len(train), "val": 100, "test": len(target)},
                    "test": scores,
                    "history": history,
                }
                columns = {"target": target, "prediction": prediction}
                _write_run(place / f"seed-{seed}", results, columns)
    return folder


def class_run(folder: Path, accuracy: float, seed: int, **settings: Any) -> Path:
    """A run of a classification into three classes, which is right with about that probability."""
    draw = np.random.default_rng((seed, 5))
    target = np.arange(200) % 3
    right = np.random.default_rng(seed).uniform(size=200) < accuracy
    label = np.where(right, target, (target + 1) % 3)
    confidence = np.clip(0.6 + 0.25 * right + draw.normal(0, 0.1, 200), 0.34, 1)
    error = 100 * float(np.mean(label != target))
    results = {
        "recipe": "cmw-net",
        "settings": {"data": "images", "seed": seed, **settings},
        "facts": {},
        "regions": {"all": {"test": 200}},
        "samples": {"train": 600, "test": 200},
        "test": {"all": {"error %": error, "accuracy %": 100 - error}},
        "history": [],
    }
    folder.mkdir(parents=True)
    _write_run(folder, results, {"target": target, "label": label, "confidence": confidence})
    return folder


def _regions(counts: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    many, few = counts > LIMITS[0], counts < LIMITS[1]
    return {"all": np.ones_like(many), "many": many, "medium": ~many & ~few, "few": few}


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None


def _write_plan(
    folder: Path, settings: Mapping[str, Any], arms: Mapping[str, Any], *, seeds: int, splits: int, trials: int
) -> None:
    folder.mkdir(parents=True)
    plan = {
        "recipe": "ranksim",
        "settings": dict(settings),
        "trials": max(1, trials),
        "seeds": seeds,
        "splits": splits,
        "reference": next(iter(arms)),
        "scales": {},
        "arms": {
            name: {**overrides, **({"tune": {"lr": {"from": 0.0003, "to": 0.01}}} if trials else {})}
            for name, overrides in arms.items()
        },
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")


def _write_log(folder: Path, settings: Mapping[str, Any], number: int) -> list[dict[str, float]]:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(number)
    history = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": float(2 / epoch + draw.normal(0, 0.02)),
            "lr": 0.001,
            "val all MAE": float(5 + 3 / epoch + draw.normal(0, 0.1)),
            "val few MAE": float(8 + 4 / epoch + draw.normal(0, 0.3)),
        }
        for epoch in range(1, EPOCHS + 1)
    ]
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows(history)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return history


def _write_run(folder: Path, results: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    common = {
        "environment": {"python": "3.11.7", "device": "cpu (x86_64)"},
        "dadl_ext": {"dadl": "0.1.0"},
        "seconds": 12.5,
        "best_epoch": 5,
    }
    (folder / "results.json").write_text(json.dumps({**common, **results}), encoding="utf-8")
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *columns])
        writer.writerows([f"houses.csv:{i + 2}", *row] for i, row in enumerate(zip(*columns.values(), strict=True)))


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())
