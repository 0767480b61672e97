"""The pixels of one image file, whatever its mode and bit depth. What has no defined range is refused."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError, shown

Image.init()
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    if name in Image.OPEN  # AVIF is missing in older versions
)
"""What is decoded. Pillow's other formats include some that start programs, and hardly tested ones."""

SUFFIXES = tuple(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)

MOST_PIXELS = 89_478_485
"""Pillow's own limit: 256 MiB in three colours."""

LARGE = 2**24
_one_at_a_time = threading.Lock()

BACKGROUND = 255
"""White shows through transparent pixels."""

WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
CONVERTED = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", *WITH_ALPHA)
REFUSED = {
    "F": "floating-point pixels have no defined range",
    "I": "32-bit pixels have no defined range",
    "LAB": "L*a*b* colours depend on a white point",
}
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
SIGNED = 2

Pixels = npt.NDArray[np.uint8]
Transparent = int | bytes | tuple[int, ...]


class PixelsError(UserError, ValueError):
    """Why an image file cannot be read."""


def read_pixels(path: Path, size: int, channels: int) -> tuple[Pixels, bool]:
    """The pixels of an image, resized to a square, and whether further frames follow the one that was read.

    Returns ``[channels, size, size]``, uint8, in 3 colours or 1 grey. The image is turned as its EXIF data say, and
    lies on white where it is transparent. Samples of 12 or 16 bits are scaled to 8. Colour profiles are not applied.
    Raises a :class:`PixelsError` for everything that cannot be read, including damaged files, images of more than
    ``MOST_PIXELS`` pixels, and floating-point, signed and 32-bit samples, whose range no file says.
    """
    try:
        image, animated = _decoded(path)
        resized = image.convert("RGB" if channels == 3 else "L").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(size, size, channels).transpose(2, 0, 1), animated
    except Exception as error:
        raise _sentence(error) from None


def check_pixels(path: Path) -> None:
    """Raise the error of :func:`read_pixels`, if there is one, in less time where the file allows it."""
    try:
        _decoded(path, draft=True)
    except Exception as error:
        raise _sentence(error) from None


def _sentence(error: Exception) -> PixelsError:
    """Files made to harm, or damaged, let Pillow raise nearly every kind of exception."""
    if isinstance(error, PixelsError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return PixelsError(f"not an image, or damaged; images are {', '.join(FORMATS)}")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return PixelsError(f"more than {MOST_PIXELS:,} pixels, which one image may have; make it smaller")
    if isinstance(error, MemoryError):
        return PixelsError("not enough memory to decode it")
    if isinstance(error, OSError) and error.strerror:
        return PixelsError(error.strerror)
    reason = " ".join(str(error).split())
    return PixelsError(f"damaged, or of a rare kind: {shown(reason) or type(error).__name__}")


def _decoded(path: Path, *, draft: bool = False) -> tuple[Image.Image, bool]:
    """The image, upright, in 8-bit grey or colours without transparency; and whether further frames follow."""
    with path.open("rb") as stream:
        image = Image.open(stream, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise PixelsError(
                f"{image.width} × {image.height} pixels; one image may have {MOST_PIXELS:,}; make it smaller"
            )
        if image.format == "PNG":  # Pillow would decode data whose checksum is wrong
            image.verify()
            stream.seek(0)
            image = Image.open(stream, formats=("PNG",))
        # In the files of a camera that hold several images (MPO), the first one is the photograph.
        animated = image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
        if draft:
            image.draft("RGB", (1, 1))  # a JPEG is still read to its end, but most pixels are not computed
        with _one_at_a_time if image.width * image.height > LARGE else nullcontext():
            raw_mode = image.tile[0][3] if image.format == "PNG" and image.tile else None
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _flat(image, raw_mode), animated


def _flat(image: Image.Image, raw_mode: object) -> Image.Image:
    tags = cast("dict[int, object]", getattr(image, "tag_v2", {}))
    if tags.get(SAMPLE_FORMAT) in (SIGNED, (SIGNED,)):
        raise PixelsError("signed pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image, tags)
    if image.mode not in CONVERTED:
        reason = REFUSED.get(image.mode, f"pixels of mode {image.mode} are not known")
        raise PixelsError(f"{reason}; save it with 8 or 16 bits, in grey or RGB")
    if image.mode not in WITH_ALPHA and "transparency" not in image.info:
        return image
    if "transparency" in image.info:
        image.info["transparency"] = _transparent(image.info["transparency"], str(raw_mode))
    visible = image.convert("LA") if image.mode == "La" else image
    flat = Image.new("RGBA", image.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
    flat.alpha_composite(visible.convert("RGBA"))
    return flat.convert("RGB")


def _from_16_bits(image: Image.Image, tags: "dict[int, object]") -> Image.Image:
    """Grey of 16 bits, or in a TIFF of as many as it says, as grey of 8 bits."""
    bits = tags.get(BITS_PER_SAMPLE, 16)
    most = (1 << int(bits[0] if isinstance(bits, tuple) else cast("int", bits))) - 1
    values = np.asarray(image).astype(np.uint32)
    if int(values.max()) > most:
        raise PixelsError(f"pixels up to {values.max()}, but at most {most} are possible with its number of bits")
    pixels = ((values * 255 + most // 2) // most).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is 0
        pixels = 255 - pixels
    if "transparency" in image.info:
        pixels[values == image.info["transparency"]] = BACKGROUND
    return Image.fromarray(pixels)


def _transparent(value: Transparent, raw_mode: str) -> Transparent:
    """The transparent grey or colour of a PNG, of as many bits as the file has, as Pillow's pixels of 8 bits."""
    if raw_mode == "RGB;16B":
        raise PixelsError("one of its 16-bit colours is transparent; save it with an alpha channel")
    if isinstance(value, tuple):
        return tuple(part & 255 for part in value)
    if isinstance(value, bytes) or raw_mode not in ("L;2", "L;4", "L"):
        return value
    most = (1 << int(raw_mode[2:] or 8)) - 1
    return (value & most) * 255 // most
