"""Han characters as images: how many strokes, and which radical? Two data sets over the same images."""

from collections import Counter
from pathlib import Path

import numpy as np

from ..data.image_lists import CLASSES
from ..files import write_csv
from ..output import JobProgress
from . import kanji
from .splits import write_lists

IMAGES, STROKES = "images", "strokes.csv"
STORED = 48  # pixels: of views of 42
STROKE_LABELS = 0.1  # of the characters, to learn to count strokes from; as many for validation
RADICAL_LABELS = 15  # % of the training characters
LEAST_CHARACTERS = 20  # of a radical, to be a class


def write_characters(folder: Path, every: int, progress: JobProgress) -> None:
    """Write every so many-th character as an image, ``strokes.csv``, and the lists of radicals.

    Strokes: most characters are for the test, because a tenth is enough to train. Radicals: the 15 % list names the
    characters whose radical is known; ``classes.txt`` names the classes, the most common one first.
    """
    characters = kanji.list_kanji()[::every]
    (folder / IMAGES).mkdir()
    progress.start("Rendering characters", total=len(characters))
    names = [f"{IMAGES}/{ord(character):05x}.png" for character in characters]
    strokes = []
    for character, name in zip(characters, names, strict=True):
        paths = kanji.read_strokes(character)
        kanji.render_strokes(paths, STORED).save(folder / name)
        strokes.append(len(paths))
        progress.advance()
    _write_strokes(folder / STROKES, names, strokes)
    _write_radicals(folder, names, [kanji.read_radical(character) for character in characters], every)


def _write_strokes(file: Path, names: list[str], strokes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    part = round(STROKE_LABELS * len(names))
    split = {i: "train" if place < part else "val" if place < 2 * part else "test" for place, i in enumerate(order)}
    rows = [{"image": name, "strokes": strokes[i], "split": split[i]} for i, name in enumerate(names)]
    write_csv(file, rows)


def _write_radicals(folder: Path, names: list[str], radicals: list[str], every: int) -> None:
    least = max(LEAST_CHARACTERS // every, 8)  # of which a few are left for each part
    classes = [radical for radical, count in Counter(radicals).most_common() if count >= least]
    chosen = [i for i, radical in enumerate(radicals) if radical in classes]
    labels = np.array([classes.index(radicals[i]) for i in chosen], dtype=np.int64)
    write_lists(folder, [names[i] for i in chosen], labels.astype(str).tolist(), labels, RADICAL_LABELS)
    (folder / CLASSES).write_text("\n".join(classes) + "\n", encoding="utf-8")
