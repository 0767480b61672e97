"""``dadl train ranksim``: imbalanced regression on numbers, texts or images, with RankSim and related methods."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from cyclopts import Parameter, validators
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dadl_ext import RankSimLoss

from ..data.fingerprint import image_fingerprint
from ..data.regression import Split
from ..data.rows import Rows, TensorRows, as_fetched, tensor_loader
from ..errors import SettingsError
from ..metrics import shot_metrics
from ..options import NonNegative, Positive, PositiveInt
from ..output import JobProgress
from ..runs.folder import read_run, trained_state
from ..runs.recipe import Evaluation, Recipe, RecipeData, Scores
from ..runs.scores import unscored
from .data_kinds import KINDS, Columns, DataKind, LabelBins, Loss, kind_of
from .feature_smoothing import FeatureDistributionSmoothing
from .inputs import Inputs, sample_names
from .losses import BalancedMSE, GaussianMixture, focal_l1_loss, focal_mse_loss, weighted_huber_loss
from .method import ContrastedEncoder, Regression, RegressionLoss, Retraining
from .reweighting import (
    Kernel,
    LabelDistributionSmoothing,
    Reweighting,
    bin_weights,
    weighted_l1_loss,
    weighted_mse_loss,
)

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


@dataclass(frozen=True, kw_only=True)
class RankSimRecipe(Recipe):
    """Imbalanced regression on numbers, texts or images, with RankSim and related methods.

    DATA is a CSV file, or a folder with STS-B-DIR's train_new.tsv, dev_new.tsv and test_new.tsv. In a CSV file with
    the columns age, path and split (AgeDB-DIR, IMDB-WIKI-DIR) no columns need to be named.
    """

    name: ClassVar[str] = "ranksim"
    shape_facts: ClassVar[tuple[str, ...]] = ("kind", "inputs", "categories")
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

    one_hot: ColumnNames = ()
    """Columns of categories."""

    split: str | None = None
    """Column that says train, val or test. [default: a random tenth each for val and test]"""

    loss: Loss | None = None
    """Loss of the predictions; bmc and gai are Balanced MSE. [default: l1; STS-B mse]"""

    ranksim: NonNegative | None = None
    """Weight γ of RankSim; 0 turns it off. [default: ages 100, STS-B 0.0003, other data 0.1;
    retraining and rnc-encoder 0]"""

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

    ks: PositiveInt = 5
    """Number of bins in the kernel's window, odd."""

    kernel_width: Positive = 2.0
    """Width of the kernel in bins."""

    bin_width: Positive | None = None
    """Width of the label bins. [default: ages 1, STS-B 0.1, other data a 50th of the range, rounded up for integers]"""

    many: PositiveInt = 100
    """Bins with more training samples are many-shot."""

    few: PositiveInt = 20
    """Bins with fewer training samples are few-shot."""

    target_scale: Positive | None = None
    """Divisor of the targets in the loss. [default: ages 1, STS-B 5, other data their standard deviation]"""

    hidden: PositiveInt = 128
    """Width of the two layers on numbers or frozen text features."""

    fine_tune: bool = False
    """Train MiniLM itself on the texts, instead of two layers on its frozen features."""

    backbone: str | None = None
    """Network for images: module:callable without arguments, images [B, 3, H, W] in [0, 1] to features [B, F];
    or timm:NAME, timm's network of that name with random weights.
    [default: EfficientNet-Lite0 with ImageNet weights]"""

    image_size: Annotated[int, Parameter(validator=validators.Number(gte=16))] = 224
    """Height and width of a view, in pixels."""

    augment: str | None = None
    """Training views of your own: module:callable without arguments that returns a module or function from float images
    [B, 3, H, W] in [0, 1] to [B, 3, image-size, image-size] in [0, 1], drawing from torch's global generator."""

    keep_positions: bool = False
    """The target depends on positions: neither crop nor mirror images at random."""

    retrain_from: Annotated[Path, Parameter(validator=validators.Path(exists=True, file_okay=False))] | None = None
    """Regressor retraining (RRT): folder of a run of this recipe on the same data, whose encoder is frozen."""

    def __post_init__(self) -> None:
        columns = [self.image, *self.text, *self.features, *self.one_hot]
        if self.target is None and any(column is not None for column in [*columns, self.split]):
            raise SettingsError("columns are named, but not the one to predict: set target")
        if self.target is not None:
            if not any(column is not None for column in columns):
                raise SettingsError("no inputs: name image, text, features or one-hot columns")
            self._check_inputs(bool(self.text), self.image is not None)
        roles = [self.target, self.split, self.image, *self.text, *dict.fromkeys([*self.features, *self.one_hot])]
        if repeated := [column for column in roles if column is not None and roles.count(column) > 1]:
            raise SettingsError(f"column {repeated[0]} has two roles: as target, input or split, name it once")
        if self.image is not None and len(columns) > 1:
            raise SettingsError("images cannot be combined with text, features or one-hot: leave out one side")
        if self.fine_tune and (self.features or self.one_hot):
            raise SettingsError("texts and numbers can be combined only with a frozen MiniLM: leave out fine-tune")
        if self.lds and self.reweighting == "none":
            raise SettingsError("lds smooths the counts of a reweighting: set reweighting too")
        if self.loss in ("bmc", "gai") and self.reweighting != "none":
            raise SettingsError(f"{self.loss} already balances rare and frequent labels: leave out reweighting")
        if self.ks % 2 == 0:
            raise SettingsError(f"ks must be odd, so that the window has a centre, got {self.ks}")
        if self.few > self.many:
            raise SettingsError(f"few={self.few} must not be above many={self.many}")
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

    def read(self, progress: JobProgress) -> RecipeData:
        kind = kind_of(self.data, self._columns)
        data = kind.read(self.data, self._columns, self.seed)
        self._check_inputs(bool(data.train.texts), bool(data.train.images))
        if data.train.images:
            self._inputs.check_images()
        parts = data.splits
        target = data.train.target
        scale = self.target_scale or kind.scale or float(target.std())
        width = self.bin_width or kind.bin_width(target)
        bins = LabelBins.covering(*kind.label_range(target), width)
        bin_numbers = {name: bins.numbers(part.target) for name, part in parts.items()}
        counts = bins.counts(bin_numbers["train"])
        inputs = self._inputs.read(list(parts.values()), data.folder, progress)
        rows = dict(zip(parts, inputs.rows, strict=True))
        numbers = data.train.features
        mean = numbers.mean(dim=0)
        deviation = (numbers - mean).square().mean(dim=0).sqrt()
        facts = {
            **inputs.facts,
            "kind": kind.name,
            "categories": data.categories,
            "mean": mean.tolist(),
            "deviation": deviation.where((numbers != numbers[0]).any(dim=0), 1.0).tolist(),
            "target_mean": float(target.mean()),
            "target_deviation": float(target.std()),
            "target_scale": scale,
            "buckets": astuple(kind.smoothing_bins(bins, width)),
            "bins": astuple(bins),
            "counts": counts.tolist(),
        }
        if self._loss(kind) == "gai":
            facts["mixture"] = _fitted_mixture((target - target.mean()) / scale, self.seed)
        weights = self._weights(kind, counts)[bin_numbers["train"]]

        def evaluation(name: Split) -> Evaluation:
            part = parts[name]
            score = partial(self._score, target=part.target, bins=bin_numbers[name], counts=counts)
            return Evaluation(sample_names(part), tensor_loader(rows[name], batch_size=self.batch_size), score)

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
            "lr": self.lr or (1e-3 if facts["inputs"] == "numbers" else 1e-4),
            "loss": self._make_loss(facts),
            "smoothing": smoothing,
            "centre": facts["target_mean"],
            "scale": facts["target_scale"],
        }
        if self.retrain_from is not None:
            return Retraining(partial(_restore_encoder, self.retrain_from, facts), encoder, head, **options)
        if self.rnc_encoder:
            return ContrastedEncoder(encoder, head, None, **options)
        weight = kind.ranksim if self.ranksim is None else self.ranksim
        ranksim = RankSimLoss(weight=weight, interp_strength=self.interp_strength, gather_distributed=True)
        return Regression(encoder, head, ranksim if weight > 0 else None, rnc=self.rnc, **options)

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        samples = KINDS[facts["kind"]].read_unseen(data, self._columns, facts["categories"])
        (inputs,) = self._inputs.read([samples], data.parent, progress).rows
        return Evaluation(sample_names(samples), tensor_loader(inputs, batch_size=self.batch_size), unscored)

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
        return Columns(self.target, self.image, self.text, self.features, self.one_hot, self.split)

    @property
    def _inputs(self) -> Inputs:
        return Inputs(
            hidden=self.hidden,
            fine_tune=self.fine_tune,
            backbone=self.backbone,
            image_size=self.image_size,
            augment=self.augment,
            keep_positions=self.keep_positions,
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

    def _make_loss(self, facts: Mapping[str, Any]) -> RegressionLoss:
        name = self._loss(KINDS[facts["kind"]])
        if name in LOSSES:
            return LOSSES[name]
        mixture = GaussianMixture(*map(torch.tensor, facts["mixture"])) if name == "gai" else None
        # Halfway between no error and the error of a constant prediction.
        return BalancedMSE(facts["target_deviation"] / facts["target_scale"] / 2, mixture=mixture)

    def _score(self, predicted: Tensor, *, target: Tensor, bins: Tensor, counts: Tensor) -> Scores:
        metrics = shot_metrics(predicted, target, bins, counts, many=self.many, few=self.few)
        return {
            region: {
                "MAE": values.mae,
                "MSE": values.mse,
                "GM": values.gm,
                "bMAE": values.bmae,
                "Pearson": values.pearson,
                "Spearman": values.spearman,
            }
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
    if name != RankSimRecipe.name or any(earlier.get(key) != facts[key] for key in ("inputs", "target_mean")):
        raise SettingsError(f"{run} was not trained on these data: retrain on the same file, with the same seed")
    try:
        encoder.load_state_dict(trained_state(run, "encoder"))
    except RuntimeError:
        raise SettingsError(f"{run} has another encoder: retrain with its hidden, backbone, fine-tune ...") from None
