"""Files that are whole or not there at all, and the lock of a folder."""

import csv
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import OutputError, SettingsError

LOCK = ".lock"

_temporary: set[Path] = set()


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place of ``path`` in one step.

    Whenever the process is killed, ``path`` is as it was before or as it will be, also after a power failure and when
    several processes write it. A killed process leaves its temporary file, see :func:`remove_leftovers`. A link is
    followed; a device or pipe cannot be replaced and is written to.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        write(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    _temporary.add(temporary)
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # else a power failure could leave zeros under the final name
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _temporary.discard(temporary)


def discard_temporary() -> None:
    """Remove the temporary files and locks of this process, which is about to end without another chance to do so."""
    for temporary in list(_temporary):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes have left of files of that name; while no other process writes them."""
    for temporary in folder.glob(f".{name}.*.part"):
        temporary.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """:func:`replace_file` for what a user asked for: raises an :class:`.OutputError` if it cannot be written."""
    with output_errors(path):
        replace_file(path, write)


def write_text(path: Path, text: str, errors: str = "surrogateescape") -> None:
    """Write text as UTF-8, by default with the very bytes of file names that are not."""
    write_file(path, lambda place: _write(place, text, errors))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a line of column names, those of all rows in their order, and a line for each row."""

    def write(place: Path) -> None:
        with place.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)

    write_file(path, write)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise an :class:`.OutputError` that names ``path`` where the system refuses something."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room there, or choose another place with --output"
        ) from None


def check_output_folder(folder: Path) -> None:
    """Raise an :class:`.OutputError` if nothing can be written into the folder; it need not exist yet."""
    with output_errors(folder):
        place = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            raise OutputError(f"cannot write to {folder}: {place} is not a writable folder; choose --output")


def check_output_file(file: Path) -> None:
    """Raise an :class:`.OutputError` if the file cannot be written; it need not exist yet."""
    with output_errors(file):
        if file.is_dir():
            raise OutputError(f"cannot write {file}: it is a folder; name a file with --output")
        if file.exists() and not file.is_file():
            return  # a device or pipe
    check_output_folder(Path(os.path.realpath(file)).parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if necessary.

    Raises a :class:`.SettingsError` if another process holds it. The lock of a process that dies is released.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(stream.fileno()), (folder / LOCK).stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError:  # this file system has no locks
            held = True
        if not held:  # or it was released at this very moment
            raise SettingsError(f"another process writes to {folder}: wait for it, or choose another folder (--output)")
        _temporary.add(folder / LOCK)
        try:
            yield
        finally:
            _temporary.discard(folder / LOCK)
            with suppress(OSError):
                (folder / LOCK).unlink()


def _write(path: Path, text: str, errors: str) -> None:
    path.write_text(text, encoding="utf-8", errors=errors)
