"""The data of the demos, written once into the user's cache as files that the recipes read."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ..errors import UserError
from ..output import JobProgress

HERE = Path(__file__).parent
SOURCES = (
    *(HERE / f"{name}.py" for name in ("characters", "kanji", "melting_points", "splits", "sprites")),
    HERE.parent / "data" / "arrays" / "sprites.py",
)
"""The code that decides what the data are."""


@dataclass(frozen=True)
class DemoData:
    """How the data of a demo are made.

    ``write`` fills a folder with every so many-th sample, ``every_quick`` in a quick demo. ``file`` in it is what the
    recipe reads; without one, the folder is. ``packages`` are those that the samples come from.
    """

    write: Callable[[Path, int, JobProgress], None]
    every_quick: int
    packages: Sequence[str]
    file: str = ""

    def prepare(self, quick: bool, progress: JobProgress) -> Path:
        """The data, written if they are not there yet; a killed process leaves nothing that looks like them."""
        every = self.every_quick if quick else 1
        folder = platformdirs.user_cache_path("dadl") / f"demo-{self._key(every)}"
        if not folder.exists():
            try:
                self._fill(folder, every, progress)
            except OSError as error:
                raise UserError(
                    f"cannot write the demo's data to {folder}: {error.strerror or error}; make room there, or set "
                    "XDG_CACHE_HOME to a folder that has it"
                ) from None
        return folder / self.file

    def _fill(self, folder: Path, every: int, progress: JobProgress) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            self.write(part, every, progress)
            with suppress(OSError):  # another process was faster
                os.rename(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _key(self, every: int) -> str:
        """Names everything that the files depend on."""
        source = b"".join(file.read_bytes() for file in SOURCES)
        versions = [f"{name}-{importlib.metadata.version(name)}" for name in self.packages]
        digest = hashlib.sha256(source).hexdigest()[:8]
        return "-".join([self.write.__name__.removeprefix("write_"), *versions, digest, *[f"{every}th"] * (every > 1)])
