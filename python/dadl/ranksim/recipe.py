"""``dadl train ranksim``: imbalanced regression on numbers, texts or images, with RankSim and related methods."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import torch
from cyclopts import Parameter, validators
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dadl_ext import RankSimLoss

from ..checks import check
from ..data.columns.arrow import as_path
from ..data.columns.number_format import Decimal, NumberFormat, Thousands
from ..data.columns.roles import Roles
from ..data.columns.source import positions, read_source
from ..data.fingerprint import image_fingerprint
from ..data.regression import RegressionData, Split
from ..data.rows import Rows, TensorRows, as_fetched, tensor_loader
from ..errors import ProblemsError, SettingsError
from ..metrics import FEW, MANY, fitting_limits, shot_metrics, shot_regions
from ..options import Count, Flag, NonNegative, Positive, PositiveInt, Width, between
from ..output import JobProgress
from ..runs.folder import as_json, read_run, trained_state
from ..runs.recipe import Evaluation, Recipe, RecipeData, Scores
from ..runs.scores import unscored
from .bins import MOST_BINS, LabelBins, skew_warning
from .data_kinds import KINDS, Columns, DataKind, Loss, kind_of
from .feature_smoothing import FeatureDistributionSmoothing
from .gradient_share import weights_of_shares
from .inputs import Inputs, MissingFacts, missing_facts, sample_names, standard_facts
from .losses import BalancedMSE, GaussianMixture, focal_l1_loss, focal_mse_loss, weighted_huber_loss
from .method import SHARE, ContrastedEncoder, Regression, RegressionLoss, Retraining
from .reweighting import (
    Kernel,
    LabelDistributionSmoothing,
    Reweighting,
    bin_weights,
    weighted_l1_loss,
    weighted_mse_loss,
)
from .target_transform import Transform, fitted_transform, known_transform, transform_facts

ColumnNames = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]

LOSSES: dict[str, RegressionLoss] = {
    "l1": weighted_l1_loss,
    "mse": weighted_mse_loss,
    "huber": weighted_huber_loss,
    "focal-l1": focal_l1_loss,
    "focal-mse": focal_mse_loss,
}
REWEIGHTING: dict[str, Reweighting] = {"inverse": "inverse", "sqrt-inverse": "sqrt_inv"}
MIXTURE_COMPONENTS = 8
SMALLEST_DEVIATION = 1e-30
SEARCHED_SHARES = (0.01, 1.0)
"""A search looks for γ where RankSim's gradient is about so many times the task's at the features."""


class _Facts(TypedDict):
    kind: Literal["ages", "sts-b", "table"]
    inputs: Literal["numbers", "images", "tokens"]
    categories: Mapping[str, list[str]]
    mean: list[float]
    deviation: list[Positive]
    target_mean: float
    target_deviation: NonNegative
    target_scale: Positive
    buckets: tuple[float, float, Annotated[int, between(1, MOST_BINS)]]
    bins: tuple[float, float, Annotated[int, between(1, MOST_BINS)]]
    counts: list[Count]


class RankSimFacts(_Facts, total=False):
    """What is known of the training data; the rest depends on the inputs and the loss."""

    width: Annotated[int, between(0, 1_000_000)]
    texts: Annotated[int, between(1, 1_000)]
    mixture: tuple[list[Positive], list[float], list[Positive]]
    columns: Mapping[str, list[str]]
    missing: MissingFacts
    ranksim: NonNegative
    edges: list[float]
    limits: tuple[Count, Count]
    transform: Transform
    quantiles: tuple[list[float], list[float]]


@dataclass(frozen=True, kw_only=True)
class RankSimRecipe(Recipe):
    """Imbalanced regression on numbers, texts or images, with RankSim and related methods.

    DATA is a CSV, parquet or Arrow file, or a folder with STS-B-DIR's train_new.tsv, dev_new.tsv and test_new.tsv. In a
    file with the columns age, path and split (AgeDB-DIR, IMDB-WIKI-DIR) no columns need to be named. Names of columns
    of text, features, dates and one-hot may be patterns such as ``size_*``; ``*`` stands for all without another role.
    """

    name: ClassVar[str] = "ranksim"
    shape_facts: ClassVar[tuple[str, ...]] = ("kind", "inputs", "categories")
    facts_kind: ClassVar[Any] = RankSimFacts
    score_columns: ClassVar[tuple[str, ...]] = ("MAE", "MSE", "GM", "bMAE", "Pearson", "Spearman")
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "ranksim": (1e-4, 1e3),
        "interp_strength": (0.1, 10.0),
    }

    lr: Positive | None = None
    """Peak learning rate. [default: 0.001; for image and text networks 0.0001]"""

    target: str | None = None
    """Column to predict."""

    image: str | None = None
    """Column of image paths, relative to the folder of the file."""

    text: ColumnNames = ()
    """Columns of text."""

    features: ColumnNames = ()
    """Columns of numbers."""

    dates: ColumnNames = ()
    """Columns of dates such as 2024-05-31 or 2024-05-31 14:30, which become days since 1970-01-01. Columns that a
    parquet or Arrow file types as dates need not be listed here."""

    one_hot: ColumnNames = ()
    """Columns of categories."""

    split: str | None = None
    """Column that says train, val or test. [default: a random tenth each for val and test]"""

    decimal: Decimal | None = None
    """Decimal sign of numbers. [default: the point; a column that may as well have thousands is refused]"""

    thousands: Thousands | None = None
    """Separator of thousands. [default: none]"""

    missing: Literal["error", "mean", "zero"] = "error"
    """What stands in for missing features: the mean of train, or 0. The network is also told that they are missing."""

    unknown: Literal["error", "zero"] = "error"
    """What to do with categories that train lacks: zero, none of the categories."""

    target_transform: Transform = "none"
    """What the network learns of a skewed target: its logarithm, or its quantile among those of train. Predictions and
    metrics have the target's own unit."""

    loss: Loss | None = None
    """Loss of the predictions; bmc and gai are Balanced MSE. [default: l1; STS-B mse]"""

    ranksim: NonNegative | None = None
    """Weight γ of RankSim; 0 turns it off. [default: ages 100, STS-B 0.0003, other images and texts 0.1, numbers alone
    0; retraining and rnc-encoder 0]"""

    interp_strength: Positive = 2.0
    """Interpolation strength λ of RankSim's gradient."""

    rnc: NonNegative = 0.0
    """Weight of Rank-N-Contrast, another regulariser of the features; 0 turns it off."""

    rnc_encoder: bool = False
    """Train the encoder by Rank-N-Contrast alone, on two views of each sample; the head learns from its features
    without changing them. The first of two stages: the second is a run with retrain-from."""

    reweighting: Literal["none", "inverse", "sqrt-inverse"] = "none"
    """Weights of samples as a function of the number of samples in their label bin."""

    lds: bool = False
    """Label distribution smoothing: smooth the counts before they are inverted."""

    fds: bool = False
    """Feature distribution smoothing, from the second epoch on."""

    kernel: Kernel = "gaussian"
    """Kernel of both kinds of smoothing."""

    ks: Annotated[int, between(1, 9_999)] = 5
    """Number of bins in the kernel's window, odd."""

    kernel_width: Positive = 2.0
    """Width of the kernel in bins."""

    bins_by: Literal["width", "log", "quantile"] = "width"
    """Label bins of equal width, of equal ratio (positive targets), or with equally many training samples."""

    bin_width: Positive | None = None
    """Width of the label bins. [default: ages 1, STS-B 0.1, other data a 50th of the range, rounded up for integers]"""

    many: PositiveInt | None = None
    """Bins with more training samples are many-shot. [default: 100; see few]"""

    few: PositiveInt | None = None
    """Bins with fewer training samples are few-shot. [default: 20; but where 100 and 20 leave many, medium or few
    without a bin, each has a third of the bins, by their number of training samples]"""

    target_scale: Positive | None = None
    """Divisor of the targets in the loss. [default: ages 1, STS-B 5, other data their standard deviation]"""

    hidden: Width = 128
    """Width of the two layers on numbers or frozen text features."""

    fine_tune: bool = False
    """Train MiniLM itself on the texts, instead of two layers on its frozen features."""

    backbone: str | None = None
    """Network for images: module:callable without arguments, images [B, 3, H, W] in [0, 1] to features [B, F];
    or timm:NAME, timm's network of that name with random weights.
    [default: EfficientNet-Lite0 with ImageNet weights]"""

    image_size: Annotated[int, between(16, 4_096)] = 224
    """Height and width of a view, in pixels."""

    augment: str | None = None
    """Training views of your own: module:callable without arguments that returns a module or function from float images
    [B, 3, H, W] in [0, 1] to [B, 3, image-size, image-size] in [0, 1], drawing from torch's global generator."""

    keep_positions: bool = False
    """The target depends on positions: neither crop nor mirror images at random."""

    outside: Flag = False
    """Let the file name images out of its folder: by '..', absolute paths or links."""

    retrain_from: Annotated[Path, Parameter(validator=validators.Path(exists=True, file_okay=False))] | None = None
    """Regressor retraining (RRT): folder of a run of this recipe on the same data, whose encoder is frozen."""

    _trained: ClassVar[Mapping[str, Any] | None] = None
    """The facts of the run whose recipe this is; set by :meth:`as_trained`."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "data", as_path(self.data))
        except TypeError as error:
            raise SettingsError(f"data: {error}") from None
        super().__post_init__()
        columns = [self.image, *self.text, *self.features, *self.dates, *self.one_hot]
        if self.target is None and any(column is not None for column in [*columns, self.split]):
            raise SettingsError("columns are named, but not the one to predict: set target")
        if self.target is None and (self._form.stated or self.missing != "error" or self.unknown != "error"):
            raise SettingsError("decimal, thousands, missing and unknown are for tables with named columns: set target")
        if self.target is not None:
            if not any(column is not None for column in columns):
                raise SettingsError("no inputs: name image, text, features, dates or one-hot columns")
            self._check_inputs(bool(self.text), self.image is not None)
        if repeated := self._columns.roles.repeated:
            raise SettingsError(f"column {repeated} has two roles: as target, input or split, name it once")
        if self.image is not None and len(columns) > 1:
            raise SettingsError("images cannot be combined with text, features or one-hot: leave out one side")
        if self.fine_tune and (self.features or self.dates or self.one_hot):
            raise SettingsError("texts and numbers can be combined only with a frozen MiniLM: leave out fine-tune")
        if self.lds and self.reweighting == "none":
            raise SettingsError("lds smooths the counts of a reweighting: set reweighting too")
        if self.loss in ("bmc", "gai") and self.reweighting != "none":
            raise SettingsError(f"{self.loss} already balances rare and frequent labels: leave out reweighting")
        if self.bin_width is not None and self.bins_by != "width":
            raise SettingsError(f"bin-width is for bins by width, not by {self.bins_by}: leave out one of the two")
        if self.ks % 2 == 0:
            raise SettingsError(f"ks must be odd, so that the window has a centre, got {self.ks}")
        if (self.few or FEW) > (self.many or MANY):
            raise SettingsError(f"few={self.few or FEW} must not be above many={self.many or MANY}")
        if self.augment is not None and self.keep_positions:
            raise SettingsError("augment replaces the view that keep-positions configures: leave out one of the two")
        if self.retrain_from is not None and self.ranksim:
            raise SettingsError("RankSim trains the encoder, but retraining freezes it: leave out one of the two")
        if self.retrain_from is not None and (self.rnc or self.rnc_encoder):
            raise SettingsError(
                "Rank-N-Contrast trains the encoder, but retraining freezes it: leave out one of the two"
            )
        if self.rnc_encoder and (self.ranksim or self.rnc):
            raise SettingsError("rnc-encoder trains by Rank-N-Contrast alone: leave out ranksim and rnc")

    @property
    def draws_test(self) -> bool:
        return self.target is not None and self.split is None

    def resolved(self, facts: Mapping[str, Any]) -> "RankSimRecipe":
        kind = KINDS[facts["kind"]]
        return replace(
            self,
            lr=self.lr or (1e-3 if facts["inputs"] == "numbers" else 1e-4),
            loss=self._loss(kind),
            ranksim=self._ranksim(kind, facts),
            many=self.many or facts.get("limits", (MANY, FEW))[0],
            few=self.few or facts.get("limits", (MANY, FEW))[1],
        )

    def read(self, progress: JobProgress) -> RecipeData:
        kind = kind_of(self.data, self._columns)
        known = None if self._trained is None else self._trained["categories"]
        data = kind.read(self.data, self._columns, self.split_seed, known)
        self._check_inputs(bool(data.train.texts), bool(data.train.images))
        if data.train.images:
            self._inputs.check_images()
        parts = data.splits
        target = data.train.target
        self._check_target(data)
        transform = fitted_transform(self.target_transform, target)
        learnt = target if transform is None else transform(target)
        scale = self.target_scale or (kind.scale if transform is None else None) or float(learnt.std())
        width = self.bin_width or kind.bin_width(target)
        bins = self._bins(kind, target, width)
        bin_numbers = {name: bins.numbers(part.target) for name, part in parts.items()}
        counts = bins.counts(bin_numbers["train"])
        inputs = self._inputs.read(list(parts.values()), data.folder, progress)
        rows = dict(zip(parts, inputs.rows, strict=True))
        facts = {
            **inputs.facts,
            **standard_facts(data.train.features),
            **self._table_facts(kind, data),
            **transform_facts(transform),
            "kind": kind.name,
            "categories": data.categories,
            "target_mean": float(learnt.mean()),
            "target_deviation": float(learnt.std()),
            "target_scale": scale,
            "buckets": astuple(kind.smoothing_bins(bins, width))[:3]
            if bins.edges is None
            else (0, bins.count, bins.count),
            "bins": astuple(bins)[:3],
            "counts": counts.tolist(),
            "limits": self._limits(counts),
        }
        if bins.edges is not None:
            facts["edges"] = bins.edges
        if self._loss(kind) == "gai":
            facts["mixture"] = _fitted_mixture((learnt - learnt.mean()) / scale, self.split_seed)
        weights = self._weights(kind, counts)[bin_numbers["train"]]
        limits = {"many": facts["limits"][0], "few": facts["limits"][1]}
        regions = shot_regions(counts, **limits)

        def evaluation(name: Split) -> Evaluation:
            part = parts[name]
            loader = tensor_loader(rows[name], batch_size=self.batch_size)
            score = partial(self._score, target=part.target, bins=bin_numbers[name], counts=counts, **limits)
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
            loader=self._loader(rows["train"], target.float(), weights),
            validation=evaluation("val"),
            test=evaluation("test"),
            notes=self._notes(data, facts, bins, counts),
        )

    def make_method(self, facts: Mapping[str, Any]) -> Regression:
        kind = KINDS[facts["kind"]]
        encoder, width = self._inputs.encoder(facts)
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)  # predicts the mean target at first
        nn.init.zeros_(head.bias)
        smoothing = None
        if self.fds:
            smoothing = FeatureDistributionSmoothing(
                width,
                *facts["buckets"],
                kernel=self.kernel,
                ks=self.ks,
                sigma=self.kernel_width,
                clip=kind.smoothing_clip,
            )
        options: dict[str, Any] = {
            "lr": self.resolved(facts).lr,
            "loss": self._make_loss(facts),
            "smoothing": smoothing,
            "bins": LabelBins.known(facts["bins"], facts["edges"]) if "edges" in facts else None,
            "transform": known_transform(facts),
            "centre": facts["target_mean"],
            "scale": facts["target_scale"],
        }
        if self.retrain_from is not None:
            return Retraining(partial(_restore_encoder, self.retrain_from, facts), encoder, head, **options)
        if self.rnc_encoder:
            return ContrastedEncoder(encoder, head, None, **options)
        weight = self._ranksim(kind, facts)
        ranksim = RankSimLoss(
            weight=weight, interp_strength=self.interp_strength, gather_distributed=True, averaged_gradients=True
        )
        return Regression(encoder, head, ranksim if weight > 0 else None, rnc=self.rnc, **options)

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        data = as_path(data)
        samples = KINDS[facts["kind"]].read_unseen(data, self.as_trained(facts)._columns, facts["categories"])
        (inputs,) = self._inputs.read([samples], data.parent, progress).rows
        return Evaluation(sample_names(samples), tensor_loader(inputs, batch_size=self.batch_size), unscored)

    def as_trained(self, facts: Mapping[str, Any]) -> "RankSimRecipe":
        """With names in place of patterns, and points that are decimal signs, because the training has settled that."""
        columns: dict[str, Any] = {role: tuple(names) for role, names in facts.get("columns", {}).items()}
        decimal = self.decimal if self.target is None else self._form.sign
        recipe = replace(self, **columns, decimal=decimal)
        object.__setattr__(recipe, "_trained", facts)
        return recipe

    def search_ranges(self, task: RecipeData, device: torch.device) -> Mapping[str, tuple[float, float]]:
        """Of γ, relative to the task's gradient on these data: from a hundredth of it to all of it."""
        if self.retrain_from is not None:
            return self.search_space
        low, high = self._weights_of_shares(task, device, *SEARCHED_SHARES) or (0.0, 0.0)
        if low >= high:
            low, high = self.search_space["ranksim"]
        if self.ranksim:  # one's own γ is tried first
            low, high = min(low, self.ranksim), max(high, self.ranksim)
        return {**self.search_space, "ranksim": (low, high)}

    def relative_values(
        self, setting: str, factors: Sequence[float], task: RecipeData, device: torch.device
    ) -> list[float]:
        """Of γ: those at which RankSim's gradient at the features is about so many times the task's."""
        if setting != "ranksim":
            return super().relative_values(setting, factors, task, device)
        found = self._weights_of_shares(task, device, *factors)
        return [factor * KINDS[task.facts["kind"]].ranksim for factor in factors] if found is None else found

    def _weights_of_shares(self, task: RecipeData, device: torch.device, *shares: float) -> list[float] | None:
        torch.manual_seed(self.seed)
        method = replace(self, ranksim=0.0).make_method(as_json(task.facts))
        ranksim = RankSimLoss(interp_strength=self.interp_strength)
        return weights_of_shares(method, ranksim, task.loader, self.epochs, device, *shares)

    def region_facts(self, facts: Mapping[str, Any], test: Evaluation) -> Mapping[str, Mapping[str, Any]]:
        """The number of test and training samples of each region, and the ranges of its labels."""
        if "limits" not in facts:  # of an earlier version
            return super().region_facts(facts, test)
        bins = LabelBins.known(facts["bins"], facts.get("edges"))
        counts = torch.tensor(facts["counts"])
        regions = shot_regions(counts, many=facts["limits"][0], few=facts["limits"][1])
        return {
            region: {
                "test": test.region_sizes[region],
                "train": int(counts[mask].sum()),
                "labels": bins.ranges(mask),
            }
            for region, mask in regions.items()
        }

    def remarks(self, history: Sequence[Mapping[str, float]]) -> Sequence[str]:
        """Say so once if RankSim's gradient exceeds the task's.

        In the first of several epochs it always may: the head starts at zero, and with it the task's gradient.
        """
        shares = [row.get(SHARE, 0.0) for row in history][min(1, self.epochs - 1) :]
        if not shares or not shares[-1] > 1 or any(share > 1 for share in shares[:-1]):
            return ()
        return (
            f"Warning: RankSim's gradient at the features is {shares[-1]:.3g} times the task's, so that it rules the "
            "training; a smaller --ranksim lessens it",
        )

    def read_columns(self, data: Path, names: Sequence[str], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        problems: list[str] = []
        source = read_source(as_path(data), problems, **KINDS[facts["kind"]].unseen_format)
        at = {} if source is None else positions(source, list(names), problems)
        if source is None or problems:
            raise ProblemsError(problems)
        return {name: source.texts(column) for name, column in at.items()}

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return {"prediction": predicted.tolist()}

    def _check_inputs(self, texts: bool, images: bool) -> None:
        if self.fine_tune and not texts:
            raise SettingsError("fine-tune trains MiniLM, but there are no texts")
        if self.backbone is not None and not images:
            raise SettingsError(f"backbone {self.backbone} is for images, but there are none")
        if self.augment is not None and not images:
            raise SettingsError(f"augment {self.augment} is for images, but there are none")

    @property
    def _columns(self) -> Columns:
        roles = Roles(self.target, self.image, self.text, self.features, self.dates, self.one_hot, self.split)
        return Columns(roles, self.decimal, self.thousands, self.missing != "error", self.unknown != "error")

    @property
    def _form(self) -> NumberFormat:
        return NumberFormat(self.decimal, self.thousands)

    def _check_target(self, data: RegressionData) -> None:
        """Refuse targets whose logarithm is wanted but not defined, and those that single precision cannot tell
        apart."""
        samples, target = data.train, data.train.target
        for name, value in (("target-transform", self.target_transform), ("bins-by", self.bins_by)):
            if value == "log" and not bool((target > 0).all()):
                rows = (target <= 0).nonzero().flatten().tolist()
                first = f"{samples.where[rows[0]]}: the target is {float(target[rows[0]]):g}"
                raise SettingsError(f"{first}, but --{name} log needs positive ones; quantile takes any")
        if bool((target.float() == target[0].float()).all()) or not float(target.std()) > SMALLEST_DEVIATION:
            raise SettingsError(
                f"{self.data}: the targets in train, such as {float(target[0])!r}, differ by too little for single "
                "precision; subtract a constant from them, or change their unit"
            )

    def _bins(self, kind: DataKind, target: Tensor, width: float) -> LabelBins:
        if self.bins_by == "log":
            return LabelBins.logarithmic(target)
        if self.bins_by == "quantile":
            return LabelBins.quantiles(target)
        return LabelBins.covering(*kind.label_range(target), width)

    def _table_facts(self, kind: DataKind, data: RegressionData) -> dict[str, Any]:
        """What was settled about the columns: names, the filling of gaps, and γ = 0 for numbers alone."""
        facts: dict[str, Any] = {}
        if kind.name != "table":
            return facts
        given, found = self._columns.roles, data.roles
        if given != found:
            facts["columns"] = {role: getattr(found, role) for role in ("text", "features", "dates", "one_hot")}
        if self.missing != "error":
            facts["missing"] = missing_facts(self.missing, data.train.features, data.feature_columns)
        if self.ranksim is None and not data.train.texts and not data.train.images:
            facts["ranksim"] = 0.0
        return facts

    def _notes(self, data: RegressionData, facts: Mapping[str, Any], bins: LabelBins, counts: Tensor) -> list[str]:
        notes = []
        if "missing" in facts and facts["missing"]["indicators"]:
            gaps = data.train.features.isnan().sum(dim=0).tolist()
            shown = ", ".join(f"{data.feature_columns[i]} ({gaps[i]})" for i in facts["missing"]["indicators"])
            notes.append(f"Missing in train, filled with {self.missing}: {shown}")
        labels = [(sample_names(part), part.target) for part in (data.train, data.val, data.test)]
        if warning := skew_warning(bins, counts, labels):
            notes.append(f"Warning: {warning}")
        if self.many is None and self.few is None and facts["limits"] != [MANY, FEW]:
            many, few = facts["limits"]
            notes.append(
                f"The limits {MANY} and {FEW} would leave many, medium or few without a label bin. Instead each has "
                f"about a third of the bins, many with more than {many} training samples and few with fewer than {few}"
            )
        if facts.get("ranksim") == 0.0 and self.retrain_from is None:
            notes.append("RankSim is off, as it is for numbers alone unless --ranksim says its weight")
        return notes

    @property
    def _inputs(self) -> Inputs:
        return Inputs(
            hidden=self.hidden,
            fine_tune=self.fine_tune,
            backbone=self.backbone,
            image_size=self.image_size,
            augment=self.augment,
            keep_positions=self.keep_positions,
            outside=self.outside,
        )

    def _weights(self, kind: DataKind, counts: Tensor) -> Tensor:
        if self.reweighting == "none":
            return torch.ones(len(counts))
        smoothing = LabelDistributionSmoothing(self.kernel, self.ks, self.kernel_width) if self.lds else None
        return bin_weights(counts, REWEIGHTING[self.reweighting], clip=kind.clip, smoothing=smoothing)

    def _loader(self, inputs: Rows, target: Tensor, weights: Tensor) -> DataLoader[Any]:
        rows = TensorRows(inputs, target, weights)
        # Batch normalisation cannot train on a single sample.
        drop_last = len(rows) > self.batch_size and len(rows) % self.batch_size == 1
        return DataLoader(rows, self.batch_size, shuffle=True, drop_last=drop_last, collate_fn=as_fetched)

    def _loss(self, kind: DataKind) -> Loss:
        return kind.loss if self.loss is None else self.loss

    def _ranksim(self, kind: DataKind, facts: Mapping[str, Any]) -> float:
        if self.ranksim is not None:
            return self.ranksim
        off = self.retrain_from is not None or self.rnc_encoder
        return 0.0 if off else float(facts.get("ranksim", kind.ranksim))

    def _make_loss(self, facts: Mapping[str, Any]) -> RegressionLoss:
        name = self._loss(KINDS[facts["kind"]])
        if name in LOSSES:
            return LOSSES[name]
        mixture = GaussianMixture(*map(torch.tensor, facts["mixture"])) if name == "gai" else None
        # Halfway between no error and the error of a constant prediction.
        return BalancedMSE(facts["target_deviation"] / facts["target_scale"] / 2, mixture=mixture)

    def _limits(self, counts: Tensor) -> list[int]:
        """Above and below which training samples a bin is many-shot and few-shot."""
        if self.many is None and self.few is None:
            return fitting_limits(counts)
        return [self.many or MANY, self.few or FEW]

    def _score(self, predicted: Tensor, *, target: Tensor, bins: Tensor, counts: Tensor, **limits: int) -> Scores:
        metrics = shot_metrics(predicted, target, bins, counts, **limits)
        return {
            region: {column: getattr(values, column.lower()) for column in self.score_columns}
            for region, values in metrics.items()
        }


def _fitted_mixture(target: Tensor, seed: int) -> list[list[float]]:
    """The density of the targets as a Gaussian mixture: weights, means and variances."""
    from sklearn.mixture import GaussianMixture as Mixture

    components = min(MIXTURE_COMPONENTS, len(target.unique()))
    fitted = Mixture(components, random_state=seed).fit(target[:, None].numpy())
    return [fitted.weights_.tolist(), fitted.means_[:, 0].tolist(), fitted.covariances_[:, 0, 0].tolist()]


def _restore_encoder(run: Path, facts: Mapping[str, Any], encoder: nn.Module) -> None:
    """Load the encoder of the run in that folder, after its best epoch if it was validated."""
    name, _, earlier = read_run(run)
    if name == RankSimRecipe.name:
        check(earlier, RankSimFacts, f"{run}: facts")
    if name != RankSimRecipe.name or any(earlier.get(key) != facts[key] for key in ("inputs", "target_mean")):
        raise SettingsError(f"{run} was not trained on these data: retrain on the same file, with the same split-seed")
    try:
        encoder.load_state_dict(trained_state(run, "encoder"))
    except RuntimeError:
        raise SettingsError(f"{run} has another encoder: retrain with its hidden, backbone, fine-tune ...") from None
