"""Types of settings and options, with the values they accept."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token, validators


def whole(type_: Any, tokens: Sequence[Token]) -> int:
    """The number in an option's text; 1.5 is none."""
    return int(tokens[0].value)


def finite(type_: Any, value: Any) -> None:
    """Object to NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Must be finite.")


def between(low: int, high: int = 2**31 - 1) -> Parameter:
    """A whole number from ``low`` to ``high``."""
    return Parameter(converter=whole, validator=validators.Number(gte=low, lte=high))


PositiveInt = Annotated[int, between(1)]
Count = Annotated[int, between(0)]
Width = Annotated[int, between(1, 16_384)]
"""Of a layer, whose weights must fit into memory."""
ImageSize = Annotated[int, between(8, 4_096)]
Seed = Annotated[int, between(0, 2**32 - 1)]
NonNegative = Annotated[float, Parameter(validator=(validators.Number(gte=0), finite))]
Positive = Annotated[float, Parameter(validator=(validators.Number(gt=0), finite))]
Fraction = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]
Flag = Annotated[bool, Parameter(negative=())]
"""Off by default, so there is no option to turn it off."""

Device = Literal["auto", "cpu", "cuda"]
Logger = Literal["tensorboard", "wandb", "mlflow"]
Keep = Literal["best", "last"]
Network = Literal["efficientnet-lite0", "resnet32", "small-cnn"]
TextEncoderName = Literal["minilm", "bilstm"]
BenchmarkName = Literal["ranksim", "rank-n-contrast", "contrast", "disagreement", "cmw-net", "all"]
