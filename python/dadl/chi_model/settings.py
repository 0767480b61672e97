"""The settings of ``dadl train chi-model``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter, validators

from ..errors import SettingsError
from ..options import NonNegative, between
from ..runs.settings import ListSettings


@dataclass(frozen=True, kw_only=True)
class ChiModelSettings(ListSettings):
    """Regression of values in [0, 1] from images with few labels, with the χ-Model or a baseline.

    DATA is a folder with train_LABELS.txt, train_100.txt, test.txt and optionally val.txt, with a line 'relative/path
    value value ...' for each image; or with the npz file of dSprites or MPI3D, of which a tenth is used for validation
    and a fifth for the test. Views keep everything in place, because values are often positions.
    """

    name: ClassVar[str] = "chi-model"
    recipe: ClassVar[str] = "dadl.chi_model.recipe:ChiModelRecipe"

    method: Literal["chi-model", "mcd", "pi-model", "r-drop", "mean-teacher", "labels-only"] = "chi-model"
    """The χ-Model or a baseline."""

    eta: NonNegative = 0.1
    """Weight of the disagreement."""

    dropout: Annotated[float, Parameter(validator=validators.Number(gte=0, lt=1))] = 0.5
    """Probability of dropout before each layer of a head."""

    columns: tuple[Annotated[int, between(0, 1_000_000)], ...] | None = None
    """The values of a row to learn, numbered from 0. [default: all]"""

    images: Annotated[int, between(1, 100_000_000)] = 10_000
    """Number of images to draw from an npz file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns is not None and len(set(self.columns)) != max(len(self.columns), 1):
            raise SettingsError(f"columns is {list(self.columns)}; name at least one, and each once")

    @property
    def draws_test(self) -> bool:
        return any(self.data.glob("*.npz"))
