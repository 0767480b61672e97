"""What a comparison says, in sentences: one for each arm, the most certain first, and what they hold for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .numbers import rounded, span, with_error
from .statistics import LEVEL, MOST_REPETITIONS, POWER, Difference, detectable, repetitions

REGION_NAMES = {"all": "overall", "many": "many-shot", "medium": "medium-shot", "few": "few-shot"}


@dataclass(frozen=True)
class Verdict:
    """``sentences``: one for each arm, by its name. ``notes``: what these sentences hold for, and what was left out.

    ``method``: how the numbers were made.
    """

    sentences: Mapping[str, str]
    notes: Sequence[str]
    method: str

    @property
    def text(self) -> list[str]:
        """Sentences and notes."""
        return [*self.sentences.values(), *self.notes]


def row_name(row: str) -> str:
    """A row of the scores in a sentence: ``"few-shot"`` for ``"few"``."""
    return REGION_NAMES.get(row, row)


def verdict(
    differences: Sequence[Difference],
    *,
    reference: str,
    row: str,
    rows: Sequence[str],
    samples: Mapping[str, tuple[int, int]] | None = None,
) -> Verdict:
    """The verdict on differences that were tested together.

    Args:
        differences: of one column, see :func:`.differences`.
        reference: the arm that the others were compared with.
        row: that of the criterion; power is told of it.
        rows: all rows, also those without a number.
        samples: the fewest and the most test samples of each row over the splits, where they are known.
    """
    of_arms: dict[str, list[Difference]] = {}
    for difference in differences:
        of_arms.setdefault(difference.arm, []).append(difference)
    most_certain = lambda of_arm: min((math.inf if math.isnan(d.p) else d.p) for d in of_arm)
    sentences = {d[0].arm: _sentence(d, reference, row) for d in sorted(of_arms.values(), key=most_certain)}
    if not sentences:
        nothing = f"Nothing can be compared with {reference} yet: no pair of split and seed has a test of every arm."
        sentences = {reference: nothing}
    return Verdict(sentences, _notes(differences, rows, samples or {}), _method(differences))


def _sentence(of_arm: Sequence[Difference], reference: str, row: str) -> str:
    arm = of_arm[0].arm
    told = next((d for d in of_arm if d.row == row), of_arm[0])
    alone = len(of_arm) == 1
    if all(d.same for d in of_arm):
        return f"{arm}: the same as {reference}, number by number."
    if found := [d for d in of_arm if d.found]:
        return f"{arm} {_findings(found, alone)}."
    tested = [d for d in of_arm if d.error > 0]
    if not tested:
        told = told if not told.same else next(d for d in of_arm if not d.same)
        size, side = rounded(abs(told.mean)), "lower" if told.mean < 0 else "higher"
        why = "one training each says" if told.count == 1 else f"the {told.repeated} change nothing, which says"
        return f"{arm}: {_score(told, alone)} is {size} {side} than with {reference}, but {why} nothing about chance."
    told = told if told in tested else tested[0]
    return f"{arm}: no difference seen; {_power(told, reference, alone)}."


def _findings(found: Sequence[Difference], alone: bool) -> str:
    """``"lowers few-shot MAE by 7.7 ± 1.3 and raises many-shot by 1.6 ± 0.10"``: what is better, then what is worse."""
    clauses = []
    named = False
    for better in (True, False):
        of_side = sorted((d for d in found if d.better == better), key=lambda d: d.p)
        if not of_side:
            continue
        parts = []
        for d in of_side:
            what = row_name(d.row) if named else _score(d, alone)
            parts.append(f"{what} by {with_error(abs(d.mean), d.error)}")
            named = True
        clauses.append(("lowers " if of_side[0].mean < 0 else "raises ") + _listed(parts))
    long = any(" and " in clause for clause in clauses)
    return (", and " if long else " and ").join(clauses)


def _power(told: Difference, reference: str, alone: bool) -> str:
    """Which difference would have been seen, and what would show half of it, or a tenth of the score."""
    size, score, repeated = detectable(told), _score(told, alone), told.repeated
    if size <= told.typical:
        wanted, name = size / 2, f"one of {_two_digits(size / 2)}"
        seen = f"one of {_two_digits(size)} in {score} would have been, with a power of {POWER:.0%}"
    else:
        wanted = told.typical / 10
        name = f"a tenth of it, {_two_digits(wanted)},"
        seen = f"not even one of the whole {score} of {reference} would have been, with a power of {POWER:.0%}"
    needed = repetitions(told, wanted)
    if needed is not None:
        more = needed - told.count
        unit = repeated.removesuffix("s") if more == 1 else repeated
        return f"{seen}; {more} more {unit} would show {name.removesuffix(',')}"
    if not told.floor:
        return f"{seen}; {name} takes more than {MOST_REPETITIONS:,} {repeated}"
    why = "that takes more data" if repeated == "splits" else "that takes more test samples"
    return f"{seen}; no number of {repeated} would show {name.removesuffix(',')}: {why}"


def _two_digits(size: float) -> str:
    """As rounded as a standard error that begins with 1."""
    exponent = math.floor(math.log10(size))
    return rounded(size, 10.0**exponent)


def _score(difference: Difference, alone: bool) -> str:
    """``"few-shot MAE"``; the only row needs no name."""
    if alone and difference.row == "all":
        return difference.column
    return f"{row_name(difference.row)} {difference.column}"


def _notes(differences: Sequence[Difference], rows: Sequence[str], samples: Mapping[str, tuple[int, int]]) -> list[str]:
    notes = []
    tested = [d for d in differences if d.error > 0]
    if any(d.repeated == "seeds" for d in differences):
        note = "This holds for one split into training and test samples; another one may say otherwise."
        if tested and all(d.samples is not None for d in tested):
            note += " The chance of drawing these test samples is counted in."
        elif tested:
            note += " The chance of training anew is counted, that of drawing these test samples is not."
        notes.append(note)
    counts = {row: span(*samples[row]) for row in rows if samples.get(row, (0, 0))[1] > 0}
    if counts:
        named = [f"{count} {row_name(row)}" if len(counts) > 1 else count for row, count in counts.items()]
        notes.append(f"Test samples: {', '.join(named)}.")
    shown = {d.row for d in differences}
    if differences and (without := [row for row in rows if row not in shown]):
        empty = all(samples.get(row) == (0, 0) for row in without)
        reason = "no test samples" if empty else "no numbers that could be compared"
        notes.append(f"Left out, with {reason}: {_listed([row_name(row) for row in without])}.")
    units, left_out = max(((d.units + d.left_out, d.left_out) for d in differences), default=(0, 0))
    fewest = min((d.left_out for d in differences), default=0)
    if left_out:
        some = "" if fewest == left_out else " in some rows"
        out = f"{left_out} of {units} pairs of split and seed are left out{some}, for all arms"
        notes.append(f"{out}: one arm has no number there.")
    return notes


def _method(differences: Sequence[Difference]) -> str:
    """How the numbers were made, in two sentences."""
    first = (
        "Differences are paired by split and seed and given as mean ± standard error; each bar is the t interval of "
        f"a difference, and together they are corrected by Holm's method, so that equal arms would show any in at most "
        f"{LEVEL:.0%} of comparisons."
    )
    tested = [d for d in differences if d.error > 0]
    if not tested:
        return first
    if any(d.repeated == "splits" for d in tested):
        return (
            f"{first} The variance over splits, whose training samples overlap, is corrected as by Nadeau and Bengio "
            "(2003)."
        )
    added = ", to which that over the test samples is added" if any(d.samples is not None for d in tested) else ""
    return f"{first} The variance is that over the seeds of one split{added}."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
