"""Types of settings and options, with the values they accept."""

from typing import Annotated, Literal

from cyclopts import Parameter, validators

PositiveInt = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0))]
NonNegative = Annotated[float, Parameter(validator=validators.Number(gte=0))]
Positive = Annotated[float, Parameter(validator=validators.Number(gt=0))]
Fraction = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]
Flag = Annotated[bool, Parameter(negative=())]
"""Off by default, so there is no option to turn it off."""

Device = Literal["auto", "cpu", "cuda"]
BenchmarkName = Literal["ranksim", "rank-n-contrast", "contrast", "disagreement", "cmw-net", "all"]
