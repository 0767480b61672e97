"""Delimited files: whatever is written comes back, and every bad row is named."""

import csv
import tempfile
from pathlib import Path

import pytest
from dadl.data.columns.source import positions
from dadl.data.tables import DELIMITERS, read_table
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
HEADER = ["a", "b", "c"]


def read(data: bytes, quoted: bool = True) -> tuple[list[list[str]], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(data)
        problems: list[str] = []
        table = read_table(path, problems, quoted=quoted)
    return [row.fields for row in table.rows], [problem.replace(str(path), "t.csv") for problem in problems]


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6), st.sampled_from(DELIMITERS), st.booleans())
def test_what_is_written_is_read(rows: list[tuple[str, str, str]], delimiter: str, byte_order_mark: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", encoding="utf-8-sig" if byte_order_mark else "utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([HEADER, *rows])
        problems: list[str] = []
        table = read_table(path, problems)
    written = [list(row) for row in rows if "".join(row).strip()]
    assert [row.fields for row in table.rows] == written
    assert len(problems) == (0 if written else 1)
    assert table.header == (HEADER if written else [])


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), min_size=1)] * 3),
        min_size=1,
    )
)
def test_without_quoting_quotation_marks_are_text(rows: list[tuple[str, str, str]]) -> None:
    lines = ["\t".join(row) for row in [HEADER, *rows]]
    fields, problems = read("\n".join(lines).encode(), quoted=False)
    assert fields == [list(row) for row in rows if "".join(row).strip()]
    assert len(problems) == (0 if fields else 1)


def test_every_bad_row_is_named() -> None:
    fields, problems = read(
        b"a, b ,c\n"
        b"1,2,3\n"
        b"\n"
        b'"1\n1",2,3\n'  # lines 4 and 5
        b"1,2\n"
        b"1,2,3,4\n"
        b'"1"x,2,3\n'
        b"1,\xe9,3\n"
        b"4,5,6\n"
        b'7,"8,9\n'
        b"10,11,12\n"
    )
    assert fields == [["1", "2", "3"], ["1\n1", "2", "3"], ["1", "\udce9", "3"], ["4", "5", "6"]]
    for problem, start, part in zip(
        sorted(problems, key=lambda text: int(text.split(":")[1])),
        ["t.csv:6:", "t.csv:7:", "t.csv:8:", "t.csv:9:", "t.csv:11:"],
        ["expected 3 columns, as the header has, got 2", "got 4", "expected after", "not UTF-8", "never closed"],
        strict=True,
    ):
        assert problem.startswith(start), problem
        assert part in problem


def test_lines_may_be_blank_but_not_of_different_lengths() -> None:
    assert read(b"a,b\n,\n1,2\n,\n3,4\n") == ([["1", "2"], ["3", "4"]], [])
    assert read(b"a\n1\n\n2\n") == ([["1"], ["2"]], [])
    assert read(b"a,b\n,1\n2,\n") == ([["", "1"], ["2", ""]], [])
    # As many fields as two columns need, and as many lines.
    fields, problems = read(b"a,b\n1\n2,3,4\n5,6\n")
    assert fields == [["5", "6"]]
    assert [problem.split(";")[0] for problem in problems] == [
        "t.csv:2: expected 2 columns, as the header has, got 1",
        "t.csv:3: expected 2 columns, as the header has, got 3",
    ]


def test_a_header_in_another_encoding_is_a_header_still() -> None:
    fields, problems = read("jahr,größe\n1,2\n".encode("latin-1"))
    assert fields == [["1", "2"]]
    assert problems == ["t.csv:1: not UTF-8; save the file with that encoding"]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"a,b,c\n"])
def test_empty_files_are_named(data: bytes) -> None:
    assert read(data) == ([], ["t.csv: no rows; expected a header and a row for each sample"])


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    problems: list[str] = []
    assert read_table(tmp_path / "none.csv", problems).header == []
    assert read_table(tmp_path, problems).header == []
    assert problems[0] == f"{tmp_path / 'none.csv'}: No such file or directory"
    assert problems[1].startswith(f"{tmp_path}: ")


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,b\n1,2,3\n")
    problems: list[str] = []
    table = read_table(tmp_path / "t.csv", problems)
    assert positions(table, ["a", "b", "c", "a,b"], problems) == {"a": 0}
    assert [problem.split(": ", 1)[1] for problem in problems] == [
        "2 columns 'b'; there are 'a', 'b', 'b'",
        "no column 'c'; there are 'a', 'b', 'b'",
        "no column 'a,b'; there are 'a', 'b', 'b', several of which are separated by spaces",
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_excels_first_line_names_the_delimiter(delimiter: str, mark: bytes, tmp_path: Path) -> None:
    path, problems = tmp_path / "t.csv", list[str]()
    path.write_bytes(mark + "sep=|\r\na|b\r\n1.5|2\r\n3|\r\n".replace("|", delimiter).encode())
    table = read_table(path, problems)
    assert (table.header, [row.fields for row in table.rows], problems) == (["a", "b"], [["1.5", "2"], ["3", ""]], [])
    assert [row.where for row in table.rows] == ["t.csv:3", "t.csv:4"]


def test_a_column_named_sep_is_a_column() -> None:
    assert read(b"sep=,b,c\n1,2,3\n") == ([["1", "2", "3"]], [])


@pytest.mark.filterwarnings("ignore:.*read as UTF")
def test_utf_16_with_a_byte_order_mark_is_read_and_damaged_or_unmarked_is_refused() -> None:
    text = "jahr;größe\n1;雪\n"
    assert read(text.encode("utf-16")) == ([["1", "雪"]], [])
    assert read(text.encode("utf-16")[:-1]) == ([], ["t.csv: begins as UTF-16 does, but is not; save it as UTF-8"])
    for problem in read(text.encode("utf-16-le"))[1][:2]:
        assert "a zero byte; save the file as UTF-8" in problem


def test_fields_may_be_long_and_quotation_marks_still_open_are_found() -> None:
    limit = csv.field_size_limit()
    for data in (b"a,b\n1,%s\n", b'a,b\n1,"%s"\n'):
        assert read(data % (b"x" * 300_000)) == ([["1", "x" * 300_000]], [])
    _, problems = read(b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 100_000)
    assert problems == ["t.csv:3: a quotation mark is opened here and never closed"]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("data", "header", "rows"),
    [
        (b"a,b\n1,2,\n3,4,,\n5,6\n", ["a", "b"], [["1", "2"], ["3", "4"], ["5", "6"]]),
        (b"a,b,,\n1,2\n3,,\n", ["a", "b"], [["1", "2"], ["3", ""]]),
        (b"a,b,\n1,2,x\n3,4\n", ["a", "b", ""], [["1", "2", "x"], ["3", "4", ""]]),
        (b"a, ,c\n1,2,3\n", ["a", "", "c"], [["1", "2", "3"]]),
    ],
)
def test_columns_at_the_end_without_name_and_values_are_left_out(
    data: bytes, header: list[str], rows: list[list[str]], tmp_path: Path
) -> None:
    path, problems = tmp_path / "t.csv", list[str]()
    path.write_bytes(data)
    table = read_table(path, problems)
    assert (table.header, [row.fields for row in table.rows], problems) == (header, rows, [])


def test_a_value_without_a_column_or_a_column_without_a_value_is_named() -> None:
    for data in (b"a,b\n1,2,x\n", b"a,b\n1,,x\n", b"a,b\n1\n", b"a,b,\n1\n"):
        assert "t.csv:2: expected 2 columns" in read(data)[1][0]
