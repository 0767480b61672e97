"""``dadl train ranksim``: imbalanced regression of numbers, texts or images, with RankSim and what goes with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from cyclopts import Parameter, validators
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dadl_ext import RankSimLoss

from ..data.fingerprint import image_fingerprint
from ..data.image_lists import load_images
from ..data.regression import (
    SPLITS,
    STS_B_FILES,
    RegressionData,
    Samples,
    read_agedb,
    read_csv,
    read_sts_b,
    read_unseen_csv,
    read_unseen_sts_b,
)
from ..data.rows import Rows
from ..data.tables import TableError, read_table
from ..metrics import shot_metrics
from ..networks.efficientnet import FEATURES, efficientnet_lite0
from ..networks.user_networks import load_backbone
from ..networks.user_views import training_view
from ..networks.views import View, stored_size
from ..options import NonNegative, Positive, PositiveInt
from ..output import JobProgress
from ..runs.recipe import Evaluation, Recipe, SettingsError, Table, Task, unscored
from ..runs.train import read_run, trained_state
from ..training.loop import TensorRows, as_fetched, tensor_loader
from .feature_smoothing import FeatureDistributionSmoothing
from .losses import BalancedMSE, GaussianMixture, focal_l1_loss, focal_mse_loss, weighted_huber_loss
from .method import Regression, RegressionLoss, Retraining
from .reweighting import (
    Kernel,
    LabelDistributionSmoothing,
    Reweighting,
    bin_labels,
    bin_weights,
    weighted_l1_loss,
    weighted_mse_loss,
)

Kind = Literal["ages", "sts-b", "table"]
Columns = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
Loss = Literal["l1", "mse", "huber", "focal-l1", "focal-mse", "bmc", "gai"]

LOSSES: dict[str, RegressionLoss] = {
    "l1": weighted_l1_loss,
    "mse": weighted_mse_loss,
    "huber": weighted_huber_loss,
    "focal-l1": focal_l1_loss,
    "focal-mse": focal_mse_loss,
}
REWEIGHTING: dict[str, Reweighting] = {"inverse": "inverse", "sqrt-inverse": "sqrt_inv"}
AGE_COLUMNS = ("age", "path", "split")
BINS = 50
MOST_BINS = 10_000
MIXTURE_COMPONENTS = 8


@dataclass(frozen=True)
class Defaults:
    """What the papers use for their data, and what other data get."""

    loss: Loss
    ranksim: float
    scale: float | None
    """``None`` is the standard deviation of the training targets."""
    clip: tuple[float, float] | None
    """Of the counts that ``inverse`` inverts."""
    smoothing_clip: tuple[float, float]


DEFAULTS: dict[Kind, Defaults] = {
    "ages": Defaults("l1", 100.0, 1.0, (5, 1000), (0.1, 10)),
    "sts-b": Defaults("mse", 3e-4, 5.0, None, (0.5, 2)),
    "table": Defaults("l1", 0.1, None, (5, 1000), (0.1, 10)),
}


@dataclass(frozen=True, kw_only=True)
class RankSimRecipe(Recipe):
    """Imbalanced regression of numbers, texts or images, with RankSim and what goes with it.

    DATA is a CSV file; of one with the columns age, path and split (AgeDB-DIR, IMDB-WIKI-DIR) nothing needs to be
    named. Or it is a folder with STS-B-DIR's train_new.tsv, dev_new.tsv and test_new.tsv.
    """

    name: ClassVar[str] = "ranksim"
    shape_facts: ClassVar[tuple[str, ...]] = ("kind", "inputs", "categories")
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "ranksim": (1e-4, 1e3),
        "interp_strength": (0.1, 10.0),
    }

    lr: Positive | None = None
    """Peak learning rate. [default: 0.001; of a network for images or texts 0.0001]"""

    target: str | None = None
    """Column to predict."""

    image: str | None = None
    """Column of image paths, relative to the file."""

    text: Columns = ()
    """Columns of texts."""

    features: Columns = ()
    """Columns of numbers."""

    one_hot: Columns = ()
    """Columns of categories."""

    split: str | None = None
    """Column that says train, val or test. [default: a tenth each for val and test, drawn with the seed]"""

    loss: Loss | None = None
    """Of the predictions; bmc and gai are Balanced MSE. [default: l1, STS-B mse]"""

    ranksim: NonNegative | None = None
    """Weight γ of RankSim; 0 is without. [default: ages 100, STS-B 0.0003, other data 0.1; retraining 0]"""

    interp_strength: Positive = 2.0
    """Interpolation strength λ of RankSim's gradient."""

    reweighting: Literal["none", "inverse", "sqrt-inverse"] = "none"
    """What the weights of samples are in the count of their label bin."""

    lds: bool = False
    """Smooth the counts before they are inverted: label distribution smoothing."""

    fds: bool = False
    """Feature distribution smoothing, from the second epoch on."""

    kernel: Kernel = "gaussian"
    """Of both smoothings."""

    ks: PositiveInt = 5
    """Bins in the kernel's window, odd."""

    kernel_width: Positive = 2.0
    """Width of the kernel in bins."""

    bin_width: Positive | None = None
    """Of the label bins. [default: ages 1, STS-B 0.1, other data a 50th of the range, whole numbers at least 1]"""

    many: PositiveInt = 100
    """Bins with more training samples are many-shot."""

    few: PositiveInt = 20
    """Bins with fewer training samples are few-shot."""

    target_scale: Positive | None = None
    """The loss is that of targets over this. [default: ages 1, STS-B 5, other data their standard deviation]"""

    hidden: PositiveInt = 128
    """Width of the two layers that turn numbers, or frozen text features, into features."""

    fine_tune: bool = False
    """Train MiniLM on the texts, instead of two layers on what it gives."""

    backbone: str | None = None
    """Network for images: module:callable without arguments, images [B, 3, H, W] in [0, 1] to features [B, F];
    or timm:NAME, timm's network of that name with random weights.
    [default: EfficientNet-Lite0 with ImageNet weights]"""

    image_size: Annotated[int, Parameter(validator=validators.Number(gte=16))] = 224
    """Height and width of a view, in pixels."""

    augment: str | None = None
    """Training views of your own: module:callable without arguments, which makes a module or function from float images
    [B, 3, H, W] in [0, 1] to [B, 3, image-size, image-size] in [0, 1], random by torch's global generator."""

    keep_positions: bool = False
    """The target depends on where things are: neither crop nor mirror images at random."""

    retrain_from: Annotated[Path, Parameter(validator=validators.Path(exists=True, file_okay=False))] | None = None
    """Regressor retraining (RRT): folder of a run of this recipe on the same data, whose encoder is kept as it is."""

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
            raise SettingsError("images are learnt from alone: leave out either image or text, features and one-hot")
        if self.fine_tune and (self.features or self.one_hot):
            raise SettingsError("texts and numbers are learnt from together only where MiniLM is frozen: no fine-tune")
        if self.lds and self.reweighting == "none":
            raise SettingsError("lds smooths the counts of a reweighting: set reweighting too")
        if self.loss in ("bmc", "gai") and self.reweighting != "none":
            raise SettingsError(f"{self.loss} counts rare labels as much as frequent ones already: no reweighting")
        if self.ks % 2 == 0:
            raise SettingsError(f"ks must be odd, so that the window has a centre, got {self.ks}")
        if self.few > self.many:
            raise SettingsError(f"few={self.few} must not be above many={self.many}")
        if self.augment is not None and self.keep_positions:
            raise SettingsError("augment replaces the view that keep-positions is about: leave out one of the two")
        if self.retrain_from is not None and self.ranksim:
            raise SettingsError("RankSim trains the encoder, which retraining keeps as it is: leave out one of the two")

    def read(self, progress: JobProgress) -> Task:
        kind, data = self._read_data()
        self._check_inputs(bool(data.train.texts), bool(data.train.images))
        if data.train.images:
            self._image_network()  # what is wrong with it, or with the view, shows before images are read
            self._view()
        target = data.train.target
        scale = self.target_scale or DEFAULTS[kind].scale or float(target.std())
        bins, buckets = self._bins(kind, target)
        parts = (data.train, data.val, data.test)
        labels = [bin_labels(part.target, *bins) for part in parts]
        counts = torch.bincount(labels[0], minlength=bins[2])
        inputs, digests, facts = self._inputs(parts, data.folder, progress)
        numbers = data.train.features
        mean = numbers.mean(dim=0)
        deviation = (numbers - mean).square().mean(dim=0).sqrt()
        facts |= {
            "kind": kind,
            "categories": data.categories,
            "mean": mean.tolist(),
            "deviation": deviation.where((numbers != numbers[0]).any(dim=0), 1.0).tolist(),
            "target_mean": float(target.mean()),
            "target_deviation": float(target.std()),
            "target_scale": scale,
            "buckets": buckets,
            "bins": bins,
            "counts": counts.tolist(),
        }
        if self._loss(kind) == "gai":
            facts["mixture"] = _fitted_mixture((target - target.mean()) / scale, self.seed)
        weights = self._weights(kind, counts)[labels[0]]

        def evaluation(samples: Samples, label: Tensor, values: Rows) -> Evaluation:
            score = partial(self._score, target=samples.target, bins=label, counts=counts)
            return Evaluation(_names(samples), tensor_loader(values, batch_size=self.batch_size), score)

        named = dict(zip(SPLITS, parts, strict=True))
        return Task(
            facts=facts,
            sizes={name: len(part.where) for name, part in named.items()},
            fingerprints={
                name: image_fingerprint(
                    [image.path for image in part.images], its, part.target, part.texts, part.features
                )
                for (name, part), its in zip(named.items(), digests, strict=True)
            },
            loader=self._loader(inputs[0], target.float(), weights),
            validation=evaluation(data.val, labels[1], inputs[1]),
            test=evaluation(data.test, labels[2], inputs[2]),
        )

    def make_method(self, facts: Mapping[str, Any]) -> Regression:
        kind: Kind = facts["kind"]
        encoder, width = self._encoder(facts)
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)  # begins with the targets' mean
        nn.init.zeros_(head.bias)
        smoothing = None
        if self.fds:
            low, high, count = facts["buckets"]
            smoothing = FeatureDistributionSmoothing(
                width,
                low,
                high,
                count,
                kernel=self.kernel,
                ks=self.ks,
                sigma=self.kernel_width,
                clip=DEFAULTS[kind].smoothing_clip,
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
        weight = DEFAULTS[kind].ranksim if self.ranksim is None else self.ranksim
        ranksim = RankSimLoss(weight=weight, interp_strength=self.interp_strength, gather_distributed=True)
        return Regression(encoder, head, ranksim if weight > 0 else None, **options)

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        if facts["kind"] == "sts-b":
            samples = read_unseen_sts_b(data)
        elif facts["kind"] == "ages":
            samples = read_unseen_csv(data, image=AGE_COLUMNS[1])
        else:
            samples = read_unseen_csv(
                data, image=self.image, text=self.text, features=self.features, categories=facts["categories"]
            )
        (inputs,), _, _ = self._inputs([samples], data.parent, progress)
        return Evaluation(_names(samples), tensor_loader(inputs, batch_size=self.batch_size), unscored)

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return {"prediction": predicted.tolist()}

    def _check_inputs(self, texts: bool, images: bool) -> None:
        if self.fine_tune and not texts:
            raise SettingsError("fine-tune trains MiniLM, but there are no texts")
        if self.backbone is not None and not images:
            raise SettingsError(f"backbone {self.backbone} is for images, but there are none")
        if self.augment is not None and not images:
            raise SettingsError(f"augment {self.augment} is for images, but there are none")

    def _read_data(self) -> tuple[Kind, RegressionData]:
        if self.target is not None:
            return "table", read_csv(
                self.data,
                self.target,
                image=self.image,
                text=self.text,
                features=self.features,
                one_hot=self.one_hot,
                split=self.split,
                seed=self.seed,
                check_images=False,  # loading them does
            )
        if self.data.is_dir():
            names = [f"{part}_new.tsv" for part in STS_B_FILES]
            if not any((self.data / name).exists() for name in names):
                raise TableError([f"{self.data}: a folder without {', '.join(names)}; of other data, name the file"])
            return "sts-b", read_sts_b(self.data)
        problems: list[str] = []
        header = read_table(self.data, problems).header
        if header and not set(AGE_COLUMNS) <= set(header):
            raise SettingsError(f"{self.data}: set target to the column to predict, one of {', '.join(header)}")
        return "ages", read_agedb(self.data, check_images=False)

    def _bins(self, kind: Kind, target: Tensor) -> tuple[tuple[float, float, int], tuple[float, float, int]]:
        """Range and number of the label bins, and of the buckets of feature smoothing."""
        low, high = {"ages": (0.0, 121.0), "sts-b": (0.0, 5.0)}.get(kind, (float(target.min()), float(target.max())))
        whole = kind == "table" and bool((target == target.round()).all())
        if whole:
            low, high = low - 0.5, high + 0.5
        width = {"ages": 1.0, "sts-b": 0.1}.get(kind, (high - low) / BINS)
        width = self.bin_width or (math.ceil(width) if whole else width)
        count = math.ceil((high - low) / width - 1e-6)
        if count > MOST_BINS:
            raise SettingsError(f"bin width {width:g} makes {count} bins of targets from {low:g} to {high:g}")
        bins = (low, low + count * width, count)
        # Few are older than 99, and smoothing reflects at the last bucket.
        return bins, (0.0, 100.0, math.ceil(100 / width)) if kind == "ages" else bins

    def _weights(self, kind: Kind, counts: Tensor) -> Tensor:
        if self.reweighting == "none":
            return torch.ones(len(counts))
        smoothing = LabelDistributionSmoothing(self.kernel, self.ks, self.kernel_width) if self.lds else None
        return bin_weights(counts, REWEIGHTING[self.reweighting], clip=DEFAULTS[kind].clip, smoothing=smoothing)

    def _inputs(
        self, parts: Sequence[Samples], folder: Path, progress: JobProgress
    ) -> tuple[Sequence[Rows], Sequence[Tensor], dict[str, Any]]:
        """What the encoder gets of each part, digests of its images, and the facts that say what it is."""
        sizes = [len(part.where) for part in parts]
        if parts[0].images:
            files = [image for part in parts for image in part.images]
            progress.start("Reading images", total=len(files))
            images, digests = load_images(folder, files, stored_size(self.image_size), progress.advance)
            return images.split(sizes), digests.split(sizes), {"inputs": "images"}
        no_digests = [torch.empty(0)] * len(parts)
        numbers = torch.cat([part.features for part in parts]).float()
        texts = [sample for part in parts for sample in part.texts]
        if texts:
            from ..networks.text_encoder import encode, tokenize  # takes seconds

            if self.fine_tune:
                return list(tokenize(texts).split(sizes)), no_digests, {"inputs": "tokens", "texts": len(texts[0])}
            progress.start("Encoding texts", total=len(texts))
            numbers = torch.cat([numbers, encode(texts, on_encoded=progress.advance)], dim=1)
        return list(numbers.split(sizes)), no_digests, {"inputs": "numbers", "width": numbers.shape[1]}

    def _loader(self, inputs: Rows, target: Tensor, weights: Tensor) -> DataLoader[Any]:
        rows = TensorRows(inputs, target, weights)
        # Batch normalisation cannot train on a single sample.
        drop_last = len(rows) > self.batch_size and len(rows) % self.batch_size == 1
        return DataLoader(rows, self.batch_size, shuffle=True, drop_last=drop_last, collate_fn=as_fetched)

    def _encoder(self, facts: Mapping[str, Any]) -> tuple[nn.Module, int]:
        """Inputs to features, and how many these are."""
        if facts["inputs"] == "images":
            network, width = self._image_network()
            return nn.Sequential(self._view(), network), width
        if facts["inputs"] == "tokens":
            from ..networks.text_encoder import TextEncoder, num_features

            return TextEncoder(), num_features(facts["texts"])
        layers = [nn.Linear(facts["width"], self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.hidden), nn.ReLU()]
        return nn.Sequential(_Standardize(facts["mean"], facts["deviation"], facts["width"]), *layers), self.hidden

    def _view(self) -> View:
        stored, crop = stored_size(self.image_size), None if self.keep_positions else 0.8
        options: dict[str, Any] = {"crop_area": crop, "flip": not self.keep_positions}
        return training_view(self.augment, self.image_size, (3, stored, stored), **options)

    def _image_network(self) -> tuple[nn.Module, int]:
        if self.backbone is None:
            return efficientnet_lite0(), FEATURES
        return load_backbone(self.backbone, self.image_size)

    def _loss(self, kind: Kind) -> Loss:
        return DEFAULTS[kind].loss if self.loss is None else self.loss

    def _make_loss(self, facts: Mapping[str, Any]) -> RegressionLoss:
        name = self._loss(facts["kind"])
        if name in LOSSES:
            return LOSSES[name]
        mixture = GaussianMixture(*map(torch.tensor, facts["mixture"])) if name == "gai" else None
        # Between errors of nothing and those of a constant.
        return BalancedMSE(facts["target_deviation"] / facts["target_scale"] / 2, mixture=mixture)

    def _score(self, predicted: Tensor, *, target: Tensor, bins: Tensor, counts: Tensor) -> Table:
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


class _Standardize(nn.Module):
    """The first columns to mean 0 and deviation 1; those after them, from MiniLM, are as they should be."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], width: int) -> None:
        super().__init__()
        others = width - len(mean)
        self.register_buffer("mean", torch.tensor([*mean, *[0.0] * others]))
        self.register_buffer("deviation", torch.tensor([*deviation, *[1.0] * others]))

    def forward(self, numbers: Tensor) -> Tensor:
        return (numbers - self.mean) / self.deviation


def _names(samples: Samples) -> list[str]:
    return [image.path for image in samples.images] if samples.images else samples.where


def _fitted_mixture(target: Tensor, seed: int) -> list[list[float]]:
    """The density of the targets: weights, means and variances of normal distributions."""
    from sklearn.mixture import GaussianMixture as Mixture

    components = min(MIXTURE_COMPONENTS, len(target.unique()))
    fitted = Mixture(components, random_state=seed).fit(target[:, None].numpy())
    return [fitted.weights_.tolist(), fitted.means_[:, 0].tolist(), fitted.covariances_[:, 0, 0].tolist()]


def _restore_encoder(run: Path, facts: Mapping[str, Any], encoder: nn.Module) -> None:
    """Load the encoder of the run in that folder, after its best epoch if it had a validation."""
    name, _, earlier = read_run(run)
    if name != RankSimRecipe.name or any(earlier.get(key) != facts[key] for key in ("inputs", "target_mean")):
        raise SettingsError(f"{run} was not trained on these data: retrain on the same file, with the same seed")
    try:
        encoder.load_state_dict(trained_state(run, "encoder"))
    except RuntimeError:
        raise SettingsError(f"{run} has another encoder: retrain with its hidden, backbone, fine-tune ...") from None
