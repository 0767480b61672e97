"""Which column has which role: target, split, images, texts, numbers, dates, categories."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .number_format import Decimal, Thousands

if TYPE_CHECKING:
    from .source import Source


@dataclass(frozen=True)
class Roles:
    """The columns of a table to learn from, by name.

    ``text``, ``features``, ``dates`` and ``one_hot`` may be patterns such as ``size_*``, see :meth:`resolved`. Columns
    of ``dates`` and ``one_hot`` may also be listed in ``features``, which then sets their position.
    """

    target: str | None = None
    image: str | None = None
    text: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    split: str | None = None

    @property
    def ordered(self) -> tuple[str, ...]:
        """Numbers, dates and categories, in the order of the features."""
        return tuple(dict.fromkeys([*self.features, *self.dates, *self.one_hot]))

    @property
    def inputs(self) -> list[str]:
        return [*([] if self.image is None else [self.image]), *self.text, *self.ordered]

    @property
    def names(self) -> list[str]:
        """All columns; one that is named twice has two roles."""
        return [*(name for name in (self.target, self.split) if name is not None), *self.inputs]

    @property
    def repeated(self) -> str | None:
        """A column with two roles."""
        both = [name for name in self.dates if name in self.one_hot]
        return next((name for name in [*self.names, *both] if self.names.count(name) > 1 or name in both), None)

    def check(self) -> None:
        """Raise a ``ValueError`` without inputs, or for a column with two roles."""
        if not self.inputs:
            raise ValueError("no inputs: name an image column, text columns, or columns of features")
        if self.repeated is not None:
            raise ValueError(f"column {self.repeated!r} has two roles: as target, input or split, name it once")

    def resolved(self, source: "Source", problems: list[str]) -> "Roles":
        """The same with names in place of patterns.

        A pattern, as for file names, stands for the columns that match it and have no other role; so ``*`` is all
        others. A name that is a column is no pattern, whatever signs it holds.
        """
        fields = ("text", "one_hot", "dates", "features")
        if not any(_is_pattern(name, source) for field in fields for name in getattr(self, field)):
            return self
        taken = {name for name in self.names if not _is_pattern(name, source)}
        found: dict[str, Any] = {}
        for field in fields:
            names: list[str] = []
            for name in getattr(self, field):
                if not _is_pattern(name, source):
                    names.append(name)
                    continue
                free = [column for column in source.header if column not in taken and fnmatchcase(column, name)]
                if not free:
                    problems.append(
                        f"{source.path}: no column without another role matches {name!r}; there are "
                        f"{', '.join(map(repr, source.header))}"
                    )
                names += dict.fromkeys(free)
                taken.update(free)
            found[field] = tuple(dict.fromkeys(names))
        return replace(self, **found)


def _is_pattern(name: str, source: "Source") -> bool:
    return any(sign in name for sign in "*?[") and name not in source.header


@dataclass(frozen=True)
class Columns:
    """The columns of a table to learn from, and how they are read, see :func:`.read_csv`."""

    roles: Roles
    decimal: Decimal | None = None
    thousands: Thousands | None = None
    missing: bool = False
    unknown: bool = False

    @property
    def reading(self) -> dict[str, Any]:
        """How they are read, as arguments of the readers."""
        return {name: getattr(self, name) for name in ("decimal", "thousands", "missing", "unknown")}
