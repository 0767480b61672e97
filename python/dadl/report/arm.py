"""The arms of a comparison with the results of their runs, as the page shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..comparison.results import ArmRuns, Unit
from .figure import color_variable, dashes
from .results import Run


@dataclass(frozen=True)
class Arm:
    """An arm; ``index`` determines its colour. ``unfinished``: runs that have no test yet."""

    index: int
    arm: ArmRuns
    runs: Mapping[Unit, Run]
    unfinished: Sequence[Run] = ()

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def color(self) -> str:
        return color_variable(self.index)

    @property
    def dashes(self) -> str:
        return dashes(self.index)

    @property
    def curves(self) -> list[Run]:
        """The runs whose learning curves are comparable: those of the first split, whose validation samples are one."""
        first = min((unit.split for unit in self.runs), default=0)
        return [run for unit, run in self.runs.items() if unit.split == first]
