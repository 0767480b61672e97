"""Numbers for people: as many digits as their standard error has."""

import math

MOST_DIGITS = 6  # before the point, and a power of ten takes over


def rounded(value: float, error: float = math.nan) -> str:
    """A value with the digits of its standard error, ``"7.7"`` for 7.6543 ± 1.3; without one, at least three digits."""
    return _written([value], _decimals(value, error))[0]


def with_error(value: float, error: float) -> str:
    """``"7.7 ± 1.3"``; only the value if it has no error."""
    if math.isnan(value):
        return "–"
    if not error > 0:
        return rounded(value)
    mean, spread = _written([value, error], _decimals(value, error))
    if "e" not in mean + spread:
        return f"{mean} ± {spread}"
    return f"({mean.partition('e')[0]} ± {spread.partition('e')[0]})e{mean.partition('e')[2]}"


def span(low: int, high: int) -> str:
    """``"38 to 45"``; one number where both are equal."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _decimals(value: float, error: float) -> int:
    """Digits behind the point: of an error one is shown, or two if it begins with 1 or 2; of other numbers three."""
    size = error if error > 0 and math.isfinite(error) else value
    if size == 0 or not math.isfinite(size):
        return 0
    if size is value:
        return 2 - _exponent(value) if _exponent(value) > MOST_DIGITS else max(0, 2 - _exponent(value))
    two = 1 - _exponent(error)
    return two if round(error * 10.0**two) < 30 else two - 1


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _written(values: list[float], decimals: int) -> list[str]:
    """With that many decimals and a true minus, or all with one power of ten if that would be long."""
    largest = max(map(abs, values))
    if not all(map(math.isfinite, values)):
        return [f"{value:g}" for value in values]
    if largest and (decimals > 5 or _exponent(largest) > MOST_DIGITS):
        power = _exponent(largest)
        texts = [f"{value / 10.0**power:.{max(0, decimals + power)}f}e{power}" for value in values]
    else:
        texts = [f"{round(value, decimals) + 0.0:.{max(0, decimals)}f}" for value in values]
    return [text.replace("-", "−", 1) if text.startswith("-") else text for text in texts]
