"""Regression data, read and checked for a training, and the facts that a method needs of them."""

from collections.abc import Mapping
from dataclasses import astuple
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.columns.data_set import RegressionData, Split
from ..data.fingerprint import image_fingerprint
from ..data.rows import Rows, TensorRows, as_fetched, tensor_loader
from ..errors import SettingsError
from ..metrics import FEW, MANY, fitting_limits, shot_metrics, shot_regions
from ..options import Count, NonNegative, Positive, between
from ..output import JobProgress
from ..runs.recipe import Evaluation, RecipeData, Scores
from .data_kinds import DataKind, kind_of
from .inputs import MissingFacts, missing_facts, sample_names, standard_facts
from .labels.bins import MOST_BINS, LabelBins, skew_warning
from .labels.transform import fitted_transform, transform_facts
from .reweighting import LabelDistributionSmoothing, Reweighting, bin_weights
from .settings import RankSimSettings, Transform

REWEIGHTING: dict[str, Reweighting] = {"inverse": "inverse", "sqrt-inverse": "sqrt_inv"}
SCORES = ("MAE", "MSE", "GM", "bMAE", "Pearson", "Spearman")
MIXTURE_COMPONENTS = 8
SMALLEST_DEVIATION = 1e-30


class _Facts(TypedDict):
    kind: Literal["ages", "sts-b", "table"]
    inputs: Literal["numbers", "images", "tokens", "words"]
    categories: Mapping[str, list[str]]
    mean: list[float]
    deviation: list[Positive]
    target_mean: float
    target_scale: Positive
    buckets: tuple[float, float, Annotated[int, between(1, MOST_BINS)]]
    bins: tuple[float, float, Annotated[int, between(1, MOST_BINS)]]
    counts: list[Count]


class RankSimFacts(_Facts, total=False):
    """What is known of the training data; the rest depends on the inputs and the loss."""

    width: Annotated[int, between(0, 1_000_000)]
    texts: Annotated[int, between(1, 1_000)]
    word_vectors: str
    target_deviation: NonNegative  # of an earlier version
    mixture: tuple[list[Positive], list[float], list[Positive]]
    columns: Mapping[str, list[str]]
    missing: MissingFacts
    ranksim: NonNegative
    edges: list[float]
    limits: tuple[Count, Count]
    transform: Transform
    quantiles: tuple[list[float], list[float]]


def read_task(settings: RankSimSettings, trained: Mapping[str, Any] | None, progress: JobProgress) -> RecipeData:
    """Read and check the data of these settings; ``trained`` are the facts of an earlier training."""
    kind = kind_of(settings.data, settings.columns)
    known = None if trained is None else trained["categories"]
    data = kind.read(settings.data, settings.columns, settings.split_seed, known)
    settings.check_inputs(bool(data.train.texts), bool(data.train.images))
    if data.train.images:
        settings.inputs.check_images()
    parts = data.splits
    target = data.train.target
    _check_target(settings, data)
    transform = fitted_transform(settings.target_transform, target)
    learnt = target if transform is None else transform(target)
    scale = settings.target_scale or (kind.scale if transform is None else None) or float(learnt.std())
    width = settings.bin_width or kind.bin_width(target)
    bins = _bins(settings, kind, target, width)
    bin_numbers = {name: bins.numbers(part.target) for name, part in parts.items()}
    counts = bins.counts(bin_numbers["train"])
    inputs = settings.inputs.read(list(parts.values()), data.folder, progress, trained)
    rows = dict(zip(parts, inputs.rows, strict=True))
    facts = {
        **inputs.facts,
        **standard_facts(data.train.features),
        **_table_facts(settings, kind, data),
        **transform_facts(transform),
        "kind": kind.name,
        "categories": data.categories,
        "target_mean": float(learnt.mean()),
        "target_scale": scale,
        "buckets": astuple(kind.smoothing_bins(bins, width))[:3] if bins.edges is None else (0, bins.count, bins.count),
        "bins": astuple(bins)[:3],
        "counts": counts.tolist(),
        "limits": _limits(settings, counts),
    }
    if bins.edges is not None:
        facts["edges"] = bins.edges
    if settings.loss_for(kind) == "gai":
        facts["mixture"] = _fitted_mixture((learnt - learnt.mean()) / scale, settings.split_seed)
    weights = _weights(settings, kind, counts)[bin_numbers["train"]]
    limits = {"many": facts["limits"][0], "few": facts["limits"][1]}
    regions = shot_regions(counts, **limits)

    def evaluation(name: Split) -> Evaluation:
        part = parts[name]
        loader = tensor_loader(rows[name], batch_size=settings.batch_size)
        score = partial(_score, settings, target=part.target, bins=bin_numbers[name], counts=counts, **limits)
        sizes = {str(region): int(mask[bin_numbers[name]].sum()) for region, mask in regions.items()}
        return Evaluation(sample_names(part), loader, score, {"target": part.target.tolist()}, sizes)

    return RecipeData(
        facts=facts,
        sizes={name: len(part.where) for name, part in parts.items()},
        fingerprints={
            name: image_fingerprint(
                [image.path for image in part.images], part_digests, part.target, part.texts, part.features
            )
            for (name, part), part_digests in zip(parts.items(), inputs.digests, strict=True)
        },
        loader=_loader(settings, rows["train"], target.float(), weights),
        validation=evaluation("val"),
        test=evaluation("test"),
        notes=[*inputs.notes, *_notes(settings, data, facts, bins, counts)],
    )


def _check_target(settings: RankSimSettings, data: RegressionData) -> None:
    """Refuse targets whose logarithm is wanted but not defined, and those that single precision cannot tell
    apart."""
    samples, target = data.train, data.train.target
    for name, value in (("target-transform", settings.target_transform), ("bins-by", settings.bins_by)):
        if value == "log" and not bool((target > 0).all()):
            rows = (target <= 0).nonzero().flatten().tolist()
            first = f"{samples.where[rows[0]]}: the target is {float(target[rows[0]]):g}"
            raise SettingsError(f"{first}, but --{name} log needs positive ones; quantile takes any")
    if bool((target.float() == target[0].float()).all()) or not float(target.std()) > SMALLEST_DEVIATION:
        raise SettingsError(
            f"{settings.data}: the targets in train, such as {float(target[0])!r}, differ by too little for single "
            "precision; subtract a constant from them, or change their unit"
        )


def _bins(settings: RankSimSettings, kind: DataKind, target: Tensor, width: float) -> LabelBins:
    if settings.bins_by == "log":
        return LabelBins.logarithmic(target)
    if settings.bins_by == "quantile":
        return LabelBins.quantiles(target)
    return LabelBins.covering(*kind.label_range(target), width)


def _table_facts(settings: RankSimSettings, kind: DataKind, data: RegressionData) -> dict[str, Any]:
    """What was settled about the columns: names, the filling of gaps, and γ = 0 for numbers alone."""
    facts: dict[str, Any] = {}
    if kind.name != "table":
        return facts
    given, found = settings.columns.roles, data.roles
    if given != found:
        facts["columns"] = {role: getattr(found, role) for role in ("text", "features", "dates", "one_hot")}
    if settings.missing != "error":
        facts["missing"] = missing_facts(settings.missing, data.train.features, data.feature_columns)
    if settings.ranksim is None and not data.train.texts and not data.train.images:
        facts["ranksim"] = 0.0
    return facts


def _notes(
    settings: RankSimSettings, data: RegressionData, facts: Mapping[str, Any], bins: LabelBins, counts: Tensor
) -> list[str]:
    notes = []
    if "missing" in facts and facts["missing"]["indicators"]:
        gaps = data.train.features.isnan().sum(dim=0).tolist()
        shown = ", ".join(f"{data.feature_columns[i]} ({gaps[i]})" for i in facts["missing"]["indicators"])
        notes.append(f"Missing in train, filled with {settings.missing}: {shown}")
    labels = [(sample_names(part), part.target) for part in (data.train, data.val, data.test)]
    if warning := skew_warning(bins, counts, labels):
        notes.append(f"Warning: {warning}")
    if settings.many is None and settings.few is None and facts["limits"] != [MANY, FEW]:
        many, few = facts["limits"]
        notes.append(
            f"The limits {MANY} and {FEW} would leave many, medium or few without a label bin. Instead each has "
            f"about a third of the bins, many with more than {many} training samples and few with fewer than {few}"
        )
    if facts.get("ranksim") == 0.0 and settings.retrain_from is None:
        notes.append("RankSim is off, as it is for numbers alone unless --ranksim says its weight")
    return notes


def _weights(settings: RankSimSettings, kind: DataKind, counts: Tensor) -> Tensor:
    if settings.reweighting == "none":
        return torch.ones(len(counts))
    smoothing = (
        LabelDistributionSmoothing(settings.kernel, settings.ks, settings.kernel_width) if settings.lds else None
    )
    return bin_weights(counts, REWEIGHTING[settings.reweighting], clip=kind.clip, smoothing=smoothing)


def _loader(settings: RankSimSettings, inputs: Rows, target: Tensor, weights: Tensor) -> DataLoader[Any]:
    rows = TensorRows(inputs, target, weights)
    # Batch normalisation cannot train on a single sample.
    drop_last = len(rows) > settings.batch_size and len(rows) % settings.batch_size == 1
    return DataLoader(rows, settings.batch_size, shuffle=True, drop_last=drop_last, collate_fn=as_fetched)


def _limits(settings: RankSimSettings, counts: Tensor) -> list[int]:
    """Above and below which training samples a bin is many-shot and few-shot."""
    if settings.many is None and settings.few is None:
        return fitting_limits(counts)
    return [settings.many or MANY, settings.few or FEW]


def _score(
    settings: RankSimSettings, predicted: Tensor, *, target: Tensor, bins: Tensor, counts: Tensor, **limits: int
) -> Scores:
    metrics = shot_metrics(predicted, target, bins, counts, **limits)
    return {
        region: {column: getattr(values, column.lower()) for column in SCORES} for region, values in metrics.items()
    }


def _fitted_mixture(target: Tensor, seed: int) -> list[list[float]]:
    """The density of the targets as a Gaussian mixture: weights, means and variances."""
    from sklearn.mixture import GaussianMixture as Mixture

    components = min(MIXTURE_COMPONENTS, len(target.unique()))
    fitted = Mixture(components, random_state=seed).fit(target[:, None].numpy())
    return [fitted.weights_.tolist(), fitted.means_[:, 0].tolist(), fitted.covariances_[:, 0, 0].tolist()]
