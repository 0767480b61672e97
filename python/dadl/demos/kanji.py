"""Characters with their stroke counts and radicals: small, naturally imbalanced data sets without a download.

The drawings come with the Python package ``kanjivg`` (KanjiVG, © Ulrich Apel, CC BY-SA 3.0). Every Han character in it
is an image; the targets are the number of strokes and the radical that dictionaries file it under.
"""

import functools
import hashlib
import importlib.metadata
import io
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import platformdirs
import resvg_py
from PIL import Image

from ..files import replace_file

ATTRIBUTION = "Characters: KanjiVG, © Ulrich Apel, CC BY-SA 3.0, https://kanjivg.tagaini.net"

_CANVAS = 109  # KanjiVG's coordinate system
_STROKE_WIDTH = 3
_COORDINATES = {"M": 2, "C": 6, "S": 4}  # numbers per path command in KanjiVG; the last two are where the pen ends
_SVG = "{http://www.w3.org/2000/svg}"

Point = tuple[float, float]


@dataclass(frozen=True)
class Kanji:
    """``characters[i]`` drawn as ``images[i]`` (uint8, ink 255 on paper 0): ``strokes[i]`` strokes, ``radicals[i]``."""

    characters: list[str]
    images: npt.NDArray[np.uint8]
    strokes: npt.NDArray[np.int64]
    radicals: list[str]

    def __len__(self) -> int:
        return len(self.characters)


@functools.cache
def _drawings() -> Path:
    return Path(str(importlib.metadata.distribution("kanjivg").locate_file("kanji")))


def list_kanji() -> list[str]:
    """All Han characters in KanjiVG, by code point. Stylistic variants, kana and radicals are left out."""
    names = (path.stem for path in _drawings().iterdir() if re.fullmatch(r"[0-9a-f]{5}\.svg", path.name))
    characters = (chr(int(name, 16)) for name in sorted(names))
    return [character for character in characters if "IDEOGRAPH-" in unicodedata.name(character, "")]


def read_strokes(character: str) -> list[str]:
    """The strokes of a character in writing order, each as an SVG path."""
    return [path.attrib["d"] for path in _read_stroke_group(character).iter(f"{_SVG}path")]


def stroke_ends(stroke: str) -> tuple[Point, Point]:
    """Where the pen is set down and where it is lifted: (x, y) as fractions of the drawing's width and height."""
    start, pen = None, (0.0, 0.0)
    for command, text in re.findall(r"([A-Za-z])([^A-Za-z]*)", stroke):
        numbers = [float(number) for number in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)", text)]
        count = _COORDINATES.get(command.upper())
        if count is None or not numbers or len(numbers) % count:
            raise ValueError(f"cannot follow {command + text!r} in the stroke {stroke!r}")
        for end in range(count, len(numbers) + 1, count):
            x, y = numbers[end - 2 : end]
            pen = (pen[0] + x, pen[1] + y) if command.islower() else (x, y)
            start = start or pen
    if start is None:
        raise ValueError(f"there is nothing to draw in the stroke {stroke!r}")
    return (start[0] / _CANVAS, start[1] / _CANVAS), (pen[0] / _CANVAS, pen[1] / _CANVAS)


def read_key_points(character: str) -> list[Point]:
    """Where the first stroke of a character starts and ends, and where the last one does."""
    strokes = read_strokes(character)
    return [*stroke_ends(strokes[0]), *stroke_ends(strokes[-1])]


def read_radical(character: str) -> str:
    """The radical that dictionaries file a character under, in its full form: 水 for 河, not 氵.

    KanjiVG marks a radical ``general`` if the traditional classification and Nelson's agree, and otherwise marks both;
    this is the traditional one, ``general`` or ``tradit``.
    """
    for group in _read_stroke_group(character).iter(f"{_SVG}g"):
        # Files spell the namespace of these attributes differently.
        attributes = {name.rpartition("}")[2]: value for name, value in group.attrib.items()}
        if attributes.get("radical") in ("general", "tradit"):
            return attributes.get("original", attributes["element"])
    raise ValueError(f"KanjiVG marks no traditional radical in {character!r} (U+{ord(character):04X})")


def _read_stroke_group(character: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring((_drawings() / f"{ord(character):05x}.svg").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"KanjiVG has no drawing of {character!r} (U+{ord(character):04X})") from None
    # Only this group holds strokes; its sibling holds their numbers, which would reveal the answer.
    return next(g for g in root.iter(f"{_SVG}g") if g.get("id", "").startswith("kvg:StrokePaths"))


def render_strokes(strokes: Iterable[str], size: int) -> npt.NDArray[np.uint8]:
    """Strokes as a greyscale image ``[size, size]``, ink 255 on paper 0."""
    paths = "".join(f'<path d="{stroke}"/>' for stroke in strokes)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_CANVAS} {_CANVAS}">'
        f'<g fill="none" stroke="#fff" stroke-width="{_STROKE_WIDTH}" stroke-linecap="round" stroke-linejoin="round">'
        f"{paths}</g></svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#000", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("L"))


def load_kanji(
    size: int = 48,
    characters: list[str] | None = None,
    *,
    cache_dir: Path | None = None,
    on_rendered: Callable[[], None] | None = None,
) -> Kanji:
    """Render characters (all of :func:`list_kanji` by default), or read the cache of an earlier call.

    ``on_rendered`` is called after each character, e.g. to show progress. The name of the cache file contains
    everything that the images depend on; if the file is damaged, the characters are rendered again.
    """
    characters = list_kanji() if characters is None else characters
    version = importlib.metadata.version("kanjivg")
    digest = hashlib.sha256(f"{_STROKE_WIDTH} {resvg_py.__version__} {''.join(characters)}".encode()).hexdigest()[:12]
    folder = platformdirs.user_cache_path("dadl") if cache_dir is None else cache_dir
    file = folder / f"kanjivg-{version}-{size}px-{digest}.npz"
    try:
        with np.load(file) as cached:
            return Kanji(characters, cached["images"], cached["strokes"], cached["radicals"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass

    images = np.empty((len(characters), size, size), dtype=np.uint8)
    strokes = np.empty(len(characters), dtype=np.int64)
    radicals = []
    for i, character in enumerate(characters):
        paths = read_strokes(character)
        images[i], strokes[i] = render_strokes(paths, size), len(paths)
        radicals.append(read_radical(character))
        if on_rendered is not None:
            on_rendered()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, images=images, strokes=strokes, radicals=np.array(radicals))

    replace_file(file, write)
    return Kanji(characters, images, strokes, radicals)
