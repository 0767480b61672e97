"""Tables, JSON and progress of the demo jobs."""

import io
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs pip install 'dadl[train]'")

from dadl.output import JobProgress, format_cell, markdown_table, mean_and_standard_error, write_json
from rich.console import Console


def test_mean_and_standard_error_by_hand() -> None:
    mean, error = mean_and_standard_error([1.0, 2.0, 6.0])
    assert mean == 3
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([1.0, 2.0, 6.0], "3.00 ± 1.53"),
        ([1.234], "1.23"),
        ([math.nan, math.nan], "–"),
        ([-0.001], "0.00"),
        ([-0.02, -0.04], "-0.03 ± 0.01"),
    ],
)
def test_cells(values: list[float], cell: str) -> None:
    assert format_cell(values) == cell


def test_markdown_table() -> None:
    table = markdown_table({"L1": {"All": [1.0], "Few": [math.nan]}, "LDS": {"All": [2.0], "Few": [3.0]}})
    assert table.splitlines() == ["| | All | Few |", "|---|---:|---:|", "| L1 | 1.00 | – |", "| LDS | 2.00 | 3.00 |"]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"mae": [1.0, math.nan], "region": {"few": math.nan}})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {"mae": [1.0, None], "region": {"few": None}}


def run_job(console: Console) -> None:
    with JobProgress(console) as progress:
        progress.start("Training", total=2)
        progress.advance("first run")
        progress.advance("second run")


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    run_job(Console(file=stream))
    assert stream.getvalue().splitlines() == ["Training 1/2: first run", "Training 2/2: second run"]


def test_the_remaining_time_is_that_of_the_speed_since_a_part_goes_on() -> None:
    stream, now = io.StringIO(), [0.0]
    console = Console(file=stream, force_terminal=True, width=100, get_time=lambda: now[0])
    with JobProgress(console) as progress:
        progress.start("Training", total=100)
        now[0] = 50.0
        progress.begin_at(90)
        for _ in range(4):
            now[0] += 2
            progress.advance()
    shown = stream.getvalue().split("Training")[-1]
    assert "94/100" in shown
    assert "0:00:12" in shown


def test_progress_is_a_bar_with_the_remaining_time_on_a_terminal() -> None:
    stream = io.StringIO()
    run_job(Console(file=stream, force_terminal=True, width=100))
    assert "2/2" in stream.getvalue()
    assert "left" in stream.getvalue()
    assert "first run" not in stream.getvalue()
