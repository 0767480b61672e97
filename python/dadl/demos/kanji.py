"""Characters with their stroke counts and radicals: small, naturally imbalanced data sets without a download.

The drawings come with the Python package ``kanjivg`` (KanjiVG, © Ulrich Apel, CC BY-SA 3.0). Every Han character in it
is an image; the targets are the number of strokes and the radical that dictionaries file it under.
"""

import functools
import importlib.metadata
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import resvg_py
from PIL import Image

_CANVAS = 109  # KanjiVG's coordinate system
_STROKE_WIDTH = 3
_SVG = "{http://www.w3.org/2000/svg}"


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


def render_strokes(strokes: Iterable[str], size: int) -> Image.Image:
    """Strokes as a grey image of ``size`` pixels, ink 255 on paper 0."""
    paths = "".join(f'<path d="{stroke}"/>' for stroke in strokes)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_CANVAS} {_CANVAS}">'
        f'<g fill="none" stroke="#fff" stroke-width="{_STROKE_WIDTH}" stroke-linecap="round" stroke-linejoin="round">'
        f"{paths}</g></svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#000", skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("L")
