"""The settings of ``dadl train ranksim``, and which of them go together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from cyclopts import Parameter, validators

from ..data.columns.number_format import Decimal, NumberFormat, Thousands
from ..data.columns.roles import Columns, Roles
from ..errors import SettingsError
from ..options import Flag, Network, NonNegative, Positive, PositiveInt, TextEncoderName, Width, between
from ..runs.settings import Settings

if TYPE_CHECKING:
    from .inputs import Inputs

Loss = Literal["l1", "mse", "huber", "focal-l1", "focal-mse", "bmc", "gai"]
Transform = Literal["none", "log", "quantile"]
ColumnNames = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]


class Defaults(Protocol):
    """What a kind of data sets unless the user does, see :class:`.DataKind`."""

    loss: ClassVar[Loss]
    ranksim: ClassVar[float]


@dataclass(frozen=True, kw_only=True)
class RankSimSettings(Settings):
    """Imbalanced regression on numbers, texts or images, with RankSim and related methods.

    DATA is a CSV, parquet or Arrow file, or a folder with STS-B-DIR's train_new.tsv, dev_new.tsv and test_new.tsv. In a
    file with the columns age, path and split (AgeDB-DIR, IMDB-WIKI-DIR) no columns need to be named. Names of columns
    of text, features, dates and one-hot may be patterns such as ``size_*``; ``*`` stands for all without another role.
    """

    name: ClassVar[str] = "ranksim"
    recipe: ClassVar[str] = "dadl.ranksim.recipe:RankSimRecipe"

    lr: Positive | None = None
    """Peak learning rate. [default: 0.001; for image networks and fine-tuning 0.0001]"""

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

    kernel: Literal["gaussian", "triangular", "laplace"] = "gaussian"
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

    text_encoder: TextEncoderName = "minilm"
    """What reads texts: MiniLM, pre-trained, or a bidirectional LSTM on word vectors, which is trained."""

    word_vectors: Path | None = None
    """File of word vectors for the LSTM: lines of a word and its numbers, as GloVe's text files have them. Words
    without a vector count as zeros. Prediction needs the same file."""

    lstm_width: Width = 128
    """Units in each direction of the LSTM's two layers."""

    network: Network = "efficientnet-lite0"
    """Network for images: efficientnet-lite0 with ImageNet weights; resnet32 and the much faster small-cnn for small
    images, from scratch."""

    backbone: str | None = None
    """Another network for images: module:callable without arguments, images [B, 3, H, W] in [0, 1] to features [B, F];
    or timm:NAME, timm's network of that name with random weights."""

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

    def __post_init__(self) -> None:
        from ..data.columns.arrow import as_path  # it imports NumPy, which the help of the command does not need

        try:
            object.__setattr__(self, "data", as_path(self.data))
        except TypeError as error:
            raise SettingsError(f"data: {error}") from None
        super().__post_init__()
        columns = [self.image, *self.text, *self.features, *self.dates, *self.one_hot]
        if self.target is None and any(column is not None for column in [*columns, self.split]):
            raise SettingsError("columns are named, but not the one to predict: set target")
        if self.target is None and (self.form.stated or self.missing != "error" or self.unknown != "error"):
            raise SettingsError("decimal, thousands, missing and unknown are for tables with named columns: set target")
        if self.target is not None:
            if not any(column is not None for column in columns):
                raise SettingsError("no inputs: name image, text, features, dates or one-hot columns")
            self.check_inputs(bool(self.text), self.image is not None)
        if repeated := self.columns.roles.repeated:
            raise SettingsError(f"column {repeated} has two roles: as target, input or split, name it once")
        if self.image is not None and len(columns) > 1:
            raise SettingsError("images cannot be combined with text, features or one-hot: leave out one side")
        if self.fine_tune and (self.features or self.dates or self.one_hot):
            raise SettingsError("texts and numbers can be combined only with a frozen MiniLM: leave out fine-tune")
        if (self.text_encoder == "bilstm") != (self.word_vectors is not None):
            raise SettingsError("text-encoder bilstm and word-vectors go together: set both or neither")
        if self.text_encoder == "bilstm" and (self.features or self.dates or self.one_hot or self.fine_tune):
            raise SettingsError("bilstm reads texts alone: leave out fine-tune and columns of numbers or categories")
        if self.lds and self.reweighting == "none":
            raise SettingsError("lds smooths the counts of a reweighting: set reweighting too")
        if self.loss in ("bmc", "gai") and self.reweighting != "none":
            raise SettingsError(f"{self.loss} already balances rare and frequent labels: leave out reweighting")
        if self.bin_width is not None and self.bins_by != "width":
            raise SettingsError(f"bin-width is for bins by width, not by {self.bins_by}: leave out one of the two")
        if self.ks % 2 == 0:
            raise SettingsError(f"ks must be odd, so that the window has a centre, got {self.ks}")
        self._check_regions()
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

    def _check_regions(self) -> None:
        if self.few is not None or self.many is not None:
            from ..metrics import FEW, MANY  # it imports PyTorch, which the help of the command does not need

            if (self.few or FEW) > (self.many or MANY):
                raise SettingsError(f"few={self.few or FEW} must not be above many={self.many or MANY}")

    def check_inputs(self, texts: bool, images: bool) -> None:
        """Refuse settings of networks for inputs that are not there."""
        if self.fine_tune and not texts:
            raise SettingsError("fine-tune trains MiniLM, but there are no texts")
        if self.text_encoder == "bilstm" and not texts:
            raise SettingsError("text-encoder bilstm reads texts, but there are none")
        if self.backbone is not None and not images:
            raise SettingsError(f"backbone {self.backbone} is for images, but there are none")
        if self.network != "efficientnet-lite0" and not images:
            raise SettingsError(f"network {self.network} is for images, but there are none")
        if self.augment is not None and not images:
            raise SettingsError(f"augment {self.augment} is for images, but there are none")

    @property
    def draws_test(self) -> bool:
        return self.target is not None and self.split is None

    @property
    def columns(self) -> Columns:
        """The columns of the table, and how they are read."""
        roles = Roles(self.target, self.image, self.text, self.features, self.dates, self.one_hot, self.split)
        return Columns(roles, self.decimal, self.thousands, self.missing != "error", self.unknown != "error")

    @property
    def form(self) -> NumberFormat:
        """How numbers in text are written."""
        return NumberFormat(self.decimal, self.thousands)

    @property
    def inputs(self) -> "Inputs":
        """The settings that concern the inputs."""
        from .inputs import Inputs  # it imports PyTorch, which the help of the command does not need

        return Inputs(
            hidden=self.hidden,
            fine_tune=self.fine_tune,
            text_encoder=self.text_encoder,
            word_vectors=self.word_vectors,
            lstm_width=self.lstm_width,
            network=self.network,
            backbone=self.backbone,
            image_size=self.image_size,
            augment=self.augment,
            keep_positions=self.keep_positions,
            outside=self.outside,
        )

    def loss_for(self, kind: Defaults) -> Loss:
        """The loss for data of that kind."""
        return kind.loss if self.loss is None else self.loss

    def ranksim_for(self, kind: Defaults, facts: Mapping[str, Any]) -> float:
        """RankSim's weight γ for data of that kind."""
        if self.ranksim is not None:
            return self.ranksim
        off = self.retrain_from is not None or self.rnc_encoder
        return 0.0 if off else float(facts.get("ranksim", kind.ranksim))
