"""The trainings of tools/soak.py: the options of each, and tiny data for it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from support.folders import write_idx

BATCH, SIZE, CLASSES = 8, 16, 3
META = 4  # samples of each class


@dataclass(frozen=True)
class Training:
    """Arguments of ``dadl train``; ``data`` is a folder or file that :func:`make_data` makes."""

    name: str
    recipe: str
    data: str
    options: Sequence[str]


def trainings() -> list[Training]:
    numbers = ["--target", "y", "--features", "x*"]
    images = ["--network", "small-cnn", "--image-size", str(SIZE)]
    found = [
        Training(f"ranksim {' '.join(options)}", "ranksim", "numbers.csv", [*numbers, *options])
        for options in (
            ["--ranksim", "1"],
            ["--rnc", "1"],
            ["--loss", "bmc"],
            ["--lds", "--reweighting", "inverse", "--fds"],
        )
    ]
    for method in ("self-tuning", "fixmatch", "fine-tuning"):
        options = [*images, "--labels", "50", "--projection-size", "16", "--slots", "4", "--method", method]
        found.append(Training(f"self-tuning {method}", "self-tuning", "classes", options))
    for method in ("chi-model", "mcd", "pi-model", "r-drop", "mean-teacher", "labels-only"):
        options = [*images, "--labels", "50", "--method", method]
        found.append(Training(f"chi-model {method}", "chi-model", "values", options))
    for method in ("cmw-net", "mw-net", "cmw-net-sl", "ce", "ce-meta"):
        options = ["--network", "small-cnn", "--meta-per-class", str(META), "--val-fraction", "0.1", "--method", method]
        options += ["--noise", "symmetric", "--noise-rate", "0.2"]
        found.append(Training(f"cmw-net {method}", "cmw-net", "idx", options))
    return found


def make_data(folder: Path, epoch: int) -> None:
    """Data of every kind with about ``epoch`` steps of ``BATCH`` samples in each epoch."""
    rng, rows = np.random.default_rng(0), epoch * BATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    x = rng.normal(size=(rows * 10 // 8, 3))
    y = np.exp(x.sum(axis=1) / 2)
    lines = [",".join(f"{number:.6f}" for number in (*inputs, target)) for inputs, target in zip(x, y, strict=True)]
    (folder / "numbers.csv").write_text("\n".join(["x1,x2,x3,y", *lines]) + "\n")

    target = rng.integers(CLASSES, size=2 * rows + 60)  # of which half are labelled
    pixels = (target[:, None, None] * 80 + rng.integers(0, 80, (len(target), SIZE, SIZE))).astype(np.uint8)
    labels = {
        "classes": target.tolist(),
        "values": [f"{value / CLASSES:.3f} {1 - value / CLASSES:.3f}" for value in target],
    }
    for kind, values in labels.items():
        (folder / kind).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / kind / f"{i}.png")
        listed = [f"{i}.png {value}\n" for i, value in enumerate(values)]
        parts = {
            "train_100": listed[60:],
            "train_50": listed[60 : 60 + rows],
            "val": listed[:30],
            "test": listed[30:60],
        }
        for name, part in parts.items():
            (folder / kind / f"{name}.txt").write_text("".join(part))

    (folder / "idx").mkdir()
    train = (rows + META * CLASSES) * 10 // 9  # beside the meta samples and a tenth for validation
    for name, part in (("train", slice(60, 60 + train)), ("t10k", slice(60))):
        write_idx(folder / "idx", name, pixels[part], target[part].astype(np.uint8))
