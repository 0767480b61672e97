"""Word vectors in GloVe's text format, and texts as the vectors of their words.

Source of the format: Pennington, Socher, Manning, "GloVe: Global Vectors for Word Representation", EMNLP 2014.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ProblemsError, UserError, shown

MAX_WORDS = 256
"""Longer texts are cut off."""
WORD = re.compile(r"\w+|[^\w\s]")
MEGABYTE = 2**20
MOST_NUMBERS = 10_000
"""In a vector; more are no word vectors."""


class WordVectorsError(UserError, ValueError):
    """A file of word vectors that cannot be read."""


def words_of(text: str) -> list[str]:
    """The words and marks of a text in lower case: runs of letters, digits and ``_``, and every other sign by itself.

    At most :data:`MAX_WORDS`; white space separates.
    """
    return WORD.findall(text.lower())[:MAX_WORDS]


@dataclass(frozen=True)
class WordVectors:
    """The vectors of some words: ``table`` ``[V, d]`` with the row of each word in ``rows``.

    ``digest`` is that of the whole file.
    """

    table: Tensor
    rows: dict[str, int]
    digest: str


def read_word_vectors(path: Path, words: Iterable[str], on_megabyte: Callable[[], None] = lambda: None) -> WordVectors:
    """Read the vectors of these words from a text file with a line for each: the word and its numbers, between spaces.

    The file may be larger than memory. Every line must have as many numbers as the first; a word may itself hold
    spaces. Numbers are read, and must be finite, for the wanted words alone. Of several lines of a word the first
    counts. A first line of two whole numbers, which word2vec writes, is left out.

    Args:
        path: the file, UTF-8.
        words: the words that are wanted.
        on_megabyte: called after each megabyte.

    Raises:
        WordVectorsError: a file that cannot be opened, or that holds none of the words.
        ProblemsError: all lines with too few numbers, or with something else in their place.
    """
    wanted = {word.encode(): word for word in words}
    digest, problems, rows, vectors = hashlib.sha256(), list[str](), dict[str, int](), list[np.ndarray]()
    width = read = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                read += len(line)
                if read >= MEGABYTE:
                    read -= MEGABYTE
                    on_megabyte()
                line = line.rstrip(b" \r\n")
                numbers = line.count(b" ")
                if number == 1 and numbers == 1 and all(part.isdigit() for part in line.split(b" ")):
                    continue
                if not width:
                    width = _width_of(path, number, line)
                if numbers < width:
                    problems.append(
                        f"{path}:{number}: expected a word and {width} numbers between spaces, got "
                        f"{shown(line.decode(errors='replace'), 60)!r}"
                    )
                    continue
                word = line.split(b" ", 1)[0] if numbers == width else line.rsplit(b" ", width)[0]
                if word in wanted and wanted[word] not in rows:
                    vector = _numbers(line[len(word) :])
                    if vector is None or len(vector) != width:
                        problems.append(
                            f"{path}:{number}: {shown(wanted[word], 60)!r} is followed by other than numbers"
                        )
                        continue
                    rows[wanted[word]] = len(vectors)
                    vectors.append(vector)
    except OSError as error:
        raise WordVectorsError(f"{path}: {error.strerror or error}") from None
    if problems:
        raise ProblemsError(problems)
    if not rows:
        raise WordVectorsError(
            f"{path}: holds none of the {len(wanted)} words of the texts, such as "
            f"{', '.join(list(wanted.values())[:5])}; expected lines of a word in lower case and its numbers"
        )
    return WordVectors(torch.from_numpy(np.stack(vectors)), rows, digest.hexdigest()[:16])


class WordRows:
    """Texts as the vectors of their words, formed when a batch asks for them: ``[n, T, L, d + 1]`` for T texts each.

    The last number is 1 for a word and 0 behind the end of a text. Words without a vector are zeros before that 1.
    """

    def __init__(self, numbers: Tensor, table: Tensor) -> None:
        self.numbers, self.table = numbers, table

    @classmethod
    def of(cls, samples: Sequence[Sequence[Sequence[str]]], vectors: WordVectors) -> "WordRows":
        """From the words of each text of each sample; all samples have as many texts."""
        width = vectors.table.shape[1]
        table = torch.zeros(len(vectors.table) + 2, width + 1)  # row 0 is behind the end, row 1 an unknown word
        table[1:, width] = 1
        table[2:, :width] = vectors.table
        length = max(len(text) for sample in samples for text in sample)
        numbers = torch.zeros(len(samples), len(samples[0]), max(length, 1), dtype=torch.int32)
        for i, sample in enumerate(samples):
            for j, text in enumerate(sample):
                rows = [vectors.rows.get(word, -1) + 2 for word in text]
                numbers[i, j, : len(rows)] = torch.tensor([max(row, 1) for row in rows], dtype=torch.int32)
        return cls(numbers, table)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: int | Tensor | slice) -> Tensor:
        numbers = self.numbers[rows]
        length = int((numbers > 0).sum(dim=-1).max()) if numbers.numel() else 0
        return self.table[numbers[..., : max(length, 1)].long()]

    def split(self, sizes: Sequence[int]) -> "list[WordRows]":
        """Parts of these sizes, without a copy."""
        return [WordRows(part, self.table) for part in self.numbers.split(list(sizes))]


def unknown_words(samples: Iterable[Iterable[Sequence[str]]], vectors: WordVectors) -> str | None:
    """A sentence on the words without a vector, or ``None`` if all have one."""
    counts = Counter(word for sample in samples for text in sample for word in text)
    unknown = Counter({word: count for word, count in counts.items() if word not in vectors.rows})
    if not unknown:
        return None
    share = unknown.total() / counts.total()
    return (
        f"{len(unknown)} of {len(counts)} different words have no vector and count as zeros, {share:.2%} of all words, "
        f"such as {', '.join(shown(word, 30) for word, _ in unknown.most_common(3))}"
    )


def _width_of(path: Path, number: int, line: bytes) -> int:
    """How many numbers follow the word in the first line."""
    parts = line.split(b" ")
    width = len(parts) - 1
    if not 1 <= width <= MOST_NUMBERS or _numbers(b" ".join(parts[1:])) is None:
        raise WordVectorsError(
            f"{path}:{number}: expected a word and its numbers between spaces, as GloVe's text files have them, got "
            f"{shown(line.decode(errors='replace'), 60)!r}"
        )
    return width


def _numbers(text: bytes) -> "np.ndarray | None":
    """Finite float32 numbers between spaces; ``None`` if something else is among them."""
    try:
        numbers = np.array(text.split(), dtype=np.float32)
    except ValueError:
        return None
    return numbers if bool(np.isfinite(numbers).all()) else None
