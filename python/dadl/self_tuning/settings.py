"""The settings of ``dadl train self-tuning``."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import SettingsError
from ..options import Fraction, Positive, Width
from ..runs.settings import ListSettings


@dataclass(frozen=True, kw_only=True)
class SelfTuningSettings(ListSettings):
    """Image classification with few labels on a pre-trained backbone, with Self-Tuning or a baseline.

    DATA is a folder with train_LABELS.txt, train_100.txt, test.txt and optionally val.txt, with a line 'relative/path
    class' for each image; or with folders of images, train/CLASS, test/CLASS and optionally val/CLASS, or CLASS alone,
    of which a tenth each is drawn for validation and test. Of folders, LABELS percent of each class are labelled.
    """

    name: ClassVar[str] = "self-tuning"
    recipe: ClassVar[str] = "dadl.self_tuning.recipe:SelfTuningRecipe"

    method: Literal["self-tuning", "fixmatch", "fine-tuning"] = "self-tuning"
    """Self-Tuning or a baseline."""

    projection_size: Width = 1024
    """Size of queries and keys (self-tuning)."""

    slots: Width = 32
    """Keys per class in the queue (self-tuning)."""

    temperature: Positive = 0.07
    """Temperature of the contrast (self-tuning)."""

    momentum: Fraction = 0.999
    """Momentum of the key encoder (self-tuning)."""

    threshold: Fraction | None = None
    """Lowest confidence of a pseudo-label. [default: self-tuning 0, fixmatch 0.95]"""

    flip: bool | None = None
    """Mirror images at random; not for characters or digits. [default: true, without augment or in fixmatch's weak
    views]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None and self.flip is not None and self.method != "fixmatch":
            raise SettingsError("augment replaces the view that flip configures: leave out one of the two")
