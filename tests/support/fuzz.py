"""Cases of the fuzzer, as lines of text."""

import torch
from support.losses import make
from support.transforms import expected, outcome_of


def repeat(case: str) -> None:
    """Raise if a case, ``function; transform; dtype; batch size; seed``, does not come out as documented."""
    name, transform, dtype, n, seed = (part.strip() for part in case.split(";"))
    call = make(name, dtype=getattr(torch, dtype), n=int(n), seed=int(seed), any_size=True)
    found = outcome_of(call, transform)
    # There is nothing to differentiate, or nothing to raise for, where there are no elements.
    if found != expected(name, transform) and call.inputs[0].numel() > 0:
        raise AssertionError(f"{found}, expected {expected(name, transform)}")
