"""Word vectors in GloVe's format, and texts as the vectors of their words."""

import re
from pathlib import Path

import pytest
import torch
from dadl.data.word_vectors import (
    MAX_WORDS,
    WordRows,
    WordVectors,
    WordVectorsError,
    read_word_vectors,
    unknown_words,
    words_of,
)
from dadl.errors import ProblemsError

LINES = ["the 1 2 3", "cat 0.5 -1e-3 4", ", 0 0 1", "new york 7 8 9", "ärger 1 1 1", "cat 9 9 9"]
ROWS = {"cat": [0.5, -1e-3, 4], "ärger": [1, 1, 1], "new york": [7, 8, 9], ",": [0, 0, 1]}


def write(path: Path, lines: list[str], ends: str = "\n") -> Path:
    path.write_bytes("".join(line + ends for line in lines).encode())
    return path


def test_words_of_a_text() -> None:
    assert words_of("The cat's  purr,\nÄRGER_2!") == ["the", "cat", "'", "s", "purr", ",", "ärger_2", "!"]
    assert words_of(" \t") == []
    assert len(words_of("word " * 1000)) == MAX_WORDS


@pytest.mark.parametrize("ends", ["\n", "\r\n", " \n"])
@pytest.mark.parametrize("header", [[], ["6 3"]])
def test_only_the_wanted_words_are_kept(tmp_path: Path, header: list[str], ends: str) -> None:
    vectors = read_word_vectors(write(tmp_path / "v.txt", header + LINES, ends), [*ROWS, "dog"])
    assert vectors.table.dtype == torch.float32
    assert {word: vectors.table[row].tolist() for word, row in vectors.rows.items()} == {
        word: pytest.approx(numbers) for word, numbers in ROWS.items()
    }


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    first, again, other = (
        read_word_vectors(write(tmp_path / f"{i}.txt", lines), words).digest
        for i, (lines, words) in enumerate([(LINES, ["cat"]), (LINES, ["the"]), ([*LINES, "dog 1 2 3"], ["cat"])])
    )
    assert first == again != other


def test_all_malformed_lines_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "v.txt", ["the 1 2 3", "short 1 2", "cat 1 two 3", "dog 1 nan 3", "", "far 1 x 2"])
    with pytest.raises(ProblemsError) as error:
        read_word_vectors(path, ["cat", "dog"])
    assert [problem.split(": ", 1)[0] for problem in error.value.problems] == [f"{path}:{i}" for i in (2, 3, 4, 5)]
    assert "expected a word and 3 numbers between spaces, got 'short 1 2'" in str(error.value)
    assert "'cat' is followed by other than numbers" in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["the cat"], "expected a word and its numbers between spaces"),
        (["the"], "expected a word and its numbers between spaces"),
        (["the 1 2 3"], "holds none of the 2 words of the texts, such as cat, dog"),
        ([], "holds none of the 2 words"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(WordVectorsError, match=re.escape(message)):
        read_word_vectors(write(tmp_path / "v.txt", lines), ["cat", "dog"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.txt"):
        with pytest.raises(WordVectorsError, match=re.escape(str(path))):
            read_word_vectors(path, ["cat"])


def test_rows_are_vectors_and_a_mark_for_each_word() -> None:
    vectors = WordVectors(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), {"a": 0, "b": 1}, "")
    rows = WordRows.of([[["a", "b", "a"], ["b"]], [["new"], []]], vectors)
    first = [[[1, 2, 1], [3, 4, 1], [1, 2, 1]], [[3, 4, 1], [0, 0, 0], [0, 0, 0]]]
    assert rows[torch.tensor([0])].tolist() == [first]
    assert rows[1].tolist() == [[[0, 0, 1]], [[0, 0, 0]]]  # no longer than its longest text
    (one, other), whole = rows.split([1, 1]), rows[torch.tensor([1, 0])]
    assert torch.equal(one[torch.tensor([0])], whole[1:])
    assert torch.equal(other[0:1], whole[:1, :, :1])
    assert (len(rows), len(one)) == (2, 1)


def test_unknown_words_are_counted() -> None:
    vectors = WordVectors(torch.ones(1, 2), {"a": 0}, "")
    told = unknown_words([[["a", "x"], ["x", "y"]]], vectors)
    assert told == "2 of 3 different words have no vector and count as zeros, 75.00% of all words, such as x, y"
    assert unknown_words([[["a"]]], vectors) is None
