"""How the command starts, before PyTorch is imported.

``python -m dadl`` imports nothing of the folder it is started in, where files of others may lie: Python puts that
folder first on ``sys.path`` before it imports this package, and after that all the rest. A signal ends the imports,
which take seconds, with a sentence.
"""

import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Lets OpenMP's threads sleep while they wait, so that several trainings share the cores."""


def begin() -> None:
    """For the command only: who imports the package keeps the path and the signals."""
    as_module = sys.argv[:1] == ["-m"] and any(
        option == "-m" and module.split(".")[0] == "dadl" for option, module in pairwise(sys.orig_argv)
    )
    if as_module and not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]
    # Not sys.argv, which a worker process has from its parent.
    script = next((word for word in sys.orig_argv[1:] if not word.startswith("-")), "")
    if as_module or Path(script).name == "dadl":
        for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) == usual:
                signal.signal(number, _end)


def wait_passively() -> None:
    """Set :data:`PASSIVE_WAITING`, unless the user has set one of its variables; in time only before PyTorch loads."""
    if not PASSIVE_WAITING.keys() & os.environ.keys():
        os.environ.update(PASSIVE_WAITING)


def _end(number: int, frame: FrameType | None) -> None:
    # An exception would not come through the imports of compiled modules.
    print(f"stopped by {signal.Signals(number).name} before anything had begun", file=sys.stderr, flush=True)
    os._exit(128 + number)
