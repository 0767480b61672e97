"""Tables with damage of every kind: either the values that Python reads, or a sentence that names the row."""

import csv
import io
import math
import os
import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data.columns import lines
from dadl.data.columns.numbers import LARGEST, MISSING
from dadl.data.regression import read_csv
from dadl.data.tables import DELIMITERS
from dadl.errors import UserError

SEEDS = int(os.environ.get("DADL_FUZZ", "150"))
BAD = [
    "",
    "NA",
    "nan",
    "inf",
    "1e400",
    "-",
    "1,5",
    "1.234,5",
    "1,234.5",
    "12 %",
    "€3",
    "2024-01-01",
    "abc",
    "1_0",
    "--1",
]
BAD += [
    "0x1F",
    "１２",
    "1e",
    "'",
    '"',
    '""',
    '"a',
    "\t",
    " ",
    "\u00a0",
    "\ufeff",
    "\0",
    "\x1c",
    "=1+1",
    "1" * 400,
    "a\nb",
]
NAMES = ["y", "x", "kind", "note"]


def well_formed(draw: random.Random) -> list[list[str]]:
    number = draw.choice(
        [lambda: f"{draw.gauss(0, 10):.2f}", lambda: repr(draw.gauss(0, 1e3)), lambda: str(draw.randint(-99, 99))]
    )
    return [[number(), number(), draw.choice("ab"), f"n{i}"] for i in range(draw.randint(10, 40))]


def mutated(draw: random.Random, text: str) -> str:
    """Characters, lines and fields replaced, repeated, swapped or lost."""
    for _ in range(draw.choice([0, 1, 1, 2, 5])):
        at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + draw.choice([0, 1, 3, 40]))
        text = text[:at] + draw.choice([*BAD, *DELIMITERS, "\n", "\r", "\r\n", "", text[at:to] * 2]) + text[to:]
    return text


def rows_by_hand(content: bytes) -> dict[int, list[str]] | None:
    """Python's own reading: the fields of each row by its line; ``None`` if it is not a table."""
    try:
        text = content.decode("utf-8-sig")
        delimiter = max(DELIMITERS, key=io.StringIO(text, newline="").readline().count)
        reader, rows, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), {}, 1
        for fields in reader:
            if any(field.strip() for field in fields):
                rows[line] = [field.strip() for field in fields]
            line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError):
        return None
    return rows


def damaged(draw: random.Random) -> bytes:
    """A table in which nothing, little or much is wrong."""
    file = io.StringIO(newline="")
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    ends = draw.choice(["\n", "\r\n"])
    writer = csv.writer(file, delimiter=draw.choice(DELIMITERS), quoting=quoting, lineterminator=ends)
    rows = well_formed(draw)
    if draw.random() < 0.5:
        rows[draw.randrange(len(rows))][draw.randrange(4)] = draw.choice(BAD)
    writer.writerows([NAMES, *rows])
    content = mutated(draw, file.getvalue()).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        at = draw.randrange(len(content))
        content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    return content


@pytest.mark.parametrize("seed", range(SEEDS))
def test_values_are_right_or_refused(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    content = damaged(draw)
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    missing, unknown = draw.random() < 0.5, draw.random() < 0.5
    try:
        data = read_csv(path, "y", features=["x"], one_hot=["kind"], missing=missing, unknown=unknown, seed=seed)
    except UserError:
        return
    by_hand = rows_by_hand(content)
    assert by_hand is not None
    header, others = next(iter(by_hand.values())), list(by_hand.items())[1:]
    at = [header.index(name) for name in NAMES[:3]]
    expected = {f"t.csv:{line}": [fields[i] for i in at] for line, fields in others}
    seen = 0
    for part in data.splits.values():
        for where, target, features in zip(part.where, part.target.tolist(), part.features.tolist(), strict=True):
            y, x, kind = expected[where]
            assert target == float(y)
            assert abs(target) <= LARGEST
            if x in MISSING:
                assert missing
                assert math.isnan(features[0])
            else:
                assert features[0] == float(x)
            for name, value in zip(data.categories["kind"], features[1:], strict=True):
                assert math.isnan(value) if not kind else value == (name == kind)
            assert missing or kind
            seen += 1
    assert seen == len(expected)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_long_table_is_read_as_a_short_one(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    draw = random.Random(seed)
    path = tmp_path / "t.csv"
    path.write_bytes(damaged(draw))
    missing = draw.random() < 0.5
    outcomes = []
    for long in (0, sys.maxsize):
        monkeypatch.setattr(lines, "LONG", long)
        try:
            data = read_csv(path, "y", features=["x"], one_hot=["kind"], missing=missing, seed=seed)
        except UserError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(
                repr([(part.where, part.target.tolist(), part.features.tolist()) for part in data.splits.values()])
            )
    assert outcomes[0] == outcomes[1]
