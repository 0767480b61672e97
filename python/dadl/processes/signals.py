"""What ends a command: Ctrl-C, ``kill``, a closed terminal. It leaves no half-written files."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from ..files import discard_temporary

IMPORTLIB = "<frozen importlib._bootstrap>"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_received = signal.SIGINT


def stop_on_signals() -> None:
    """Let these signals raise a ``KeyboardInterrupt``; ignored ones, as under nohup, stay ignored.

    One of several processes may be waiting for the others in a collective, where no exception reaches it. There a
    thread of its own removes the files that are being written and ends the process.
    """
    stopping = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if together:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        threading.Thread(target=_end_process, args=(reading,), daemon=True).start()
    for number in stopping:
        signal.signal(number, _leave_to_the_thread if together else _interrupt)


def received() -> signal.Signals:
    """The last signal that raised a ``KeyboardInterrupt``, which need not have come through as it was."""
    return _received


def stopped_by(number: int) -> str:
    """The sentence to end with."""
    return f"stopped by {signal.Signals(number).name}; a training run continues with --resume"


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received = signal.Signals(number)
    if _imports(frame):
        _end_now(number)
    raise KeyboardInterrupt


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    pass


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported; an exception would not come through the imports of compiled ones."""
    while frame is not None and frame.f_code.co_filename != IMPORTLIB:
        frame = frame.f_back
    return frame is not None


def _end_process(reading: int) -> None:
    _end_now(next(number for number in iter(lambda: os.read(reading, 1)[0], None) if number in STOPPING))


def _end_now(number: int) -> NoReturn:
    discard_temporary()
    if int(os.environ.get("RANK", 0)) == 0:
        print(stopped_by(number), file=sys.stderr, flush=True)
    os._exit(128 + number)
