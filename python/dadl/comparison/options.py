"""The options of a comparison. Without PyTorch, so that ``--help`` is quick."""

from dataclasses import dataclass
from pathlib import Path

from ..options import Device, Flag, PositiveInt


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How a comparison is carried out."""

    trials: PositiveInt = 4
    """Trainings by which the settings of each arm are chosen on validation, for each split."""

    seeds: PositiveInt = 5
    """Trainings of each arm that are tested, for each split."""

    splits: PositiveInt = 1
    """Random splits of the data into train, validation and test."""

    output: Path | None = None
    """Folder of the comparison. [default: dadl-compare-NAME]"""

    resume: Flag = False
    """Continue in the folder; with more seeds, splits or arms only what is missing is trained."""

    device: Device = "auto"
    """Where to compute."""

    jobs: PositiveInt | None = None
    """Trainings side by side. [default: one for each core, or one on a GPU]"""

    trust_code: Flag = False
    """Execute the code that a config or arms file names as backbone or augment; what the command line names always
    is."""
