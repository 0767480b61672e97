"""The pixels of image files are those that their formats define, or the files are refused with a sentence."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data.image_lists import Row
from dadl.data.images import load_images
from dadl.data.pixels import PixelsError, check_pixels, read_pixels
from PIL import Image
from support.images import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, png, tiff

SIZE = 16
RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE, 1)
COLOURS = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
WHITE = 255

Array = npt.NDArray[Any]


def pixels_of(content: bytes, folder: Path, channels: int = 3) -> Array:
    """``[H, W, channels]``, of an image of SIZE × SIZE pixels, which is not resized."""
    file = folder / "image"
    file.write_bytes(content)
    check_pixels(file)
    return read_pixels(file, SIZE, channels)[0].transpose(1, 2, 0)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def refused(content: bytes, folder: Path, message: str) -> None:
    (folder / "image").write_bytes(content)
    for read in (check_pixels, lambda file: read_pixels(file, SIZE, 3)):
        with pytest.raises(PixelsError, match=message):
            read(folder / "image")


def samples(bits: int) -> Array:
    """A ramp of all that ``bits`` can hold."""
    return np.rint(RAMP * (2**bits - 1)).astype(np.int64)


def scaled(values: Array, bits: int) -> Array:
    return np.rint(values * 255 / (2**bits - 1))


def packed_12(values: Array) -> bytes:
    """Two samples in three bytes."""
    first, second = values.reshape(-1, 2).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


GREYS: dict[str, tuple[int, Callable[[Array], bytes]]] = {
    **{f"PNG {bits}": (bits, lambda v, bits=bits: png(v, GREY, bits)) for bits in (1, 2, 4, 8, 16)},
    "PGM 8": (8, lambda v: b"P5 16 16 255 " + v.astype(np.uint8).tobytes()),
    "PGM 12": (12, lambda v: b"P5 16 16 4095 " + v.astype(">u2").tobytes()),
    "PGM 16": (16, lambda v: b"P5 16 16 65535 " + v.astype(">u2").tobytes()),
    "PGM 12, text": (12, lambda v: b"P2 16 16 4095 " + b" ".join(b"%d" % value for value in v.ravel())),
    "TIFF 8": (8, lambda v: tiff(16, 16, 8, 1, v.astype(np.uint8).tobytes())),
    "TIFF 12": (12, lambda v: tiff(16, 16, 12, 1, packed_12(v))),
    "TIFF 16": (16, lambda v: tiff(16, 16, 16, 1, v.astype("<u2").tobytes())),
    "TIFF 8, white is 0": (8, lambda v: tiff(16, 16, 8, 0, (255 - v).astype(np.uint8).tobytes())),
    "TIFF 16, white is 0": (16, lambda v: tiff(16, 16, 16, 0, (65535 - v).astype("<u2").tobytes())),
    "TIFF 16, big-endian": (16, lambda v: saved(Image.fromarray(v[..., 0].astype(">u2")), "TIFF")),
    "JPEG 2000 16": (16, lambda v: saved(Image.fromarray(v[..., 0].astype(np.uint16)), "JPEG2000")),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", GREYS)
def test_greys_are_scaled_by_their_bits(kind: str, channels: int, tmp_path: Path) -> None:
    bits, encoded = GREYS[kind]
    values = samples(bits)
    pixels = pixels_of(encoded(values), tmp_path, channels)
    assert len(np.unique(values)) == min(2**bits, SIZE * SIZE)
    np.testing.assert_array_equal(pixels, np.broadcast_to(scaled(values, bits), (SIZE, SIZE, channels)))


@pytest.mark.parametrize("kind", ["PNG", "PPM 16", "PPM 12", "TIFF"])
def test_16_bit_colours_are_at_most_a_level_off(kind: str, tmp_path: Path) -> None:
    bits = 12 if kind == "PPM 12" else 16
    values = RNG.integers(0, 2**bits, (SIZE, SIZE, 3))
    if kind == "PNG":
        content = png(values, COLOUR, 16)
    elif kind == "TIFF":
        content = tiff(48, 16, 16, 2, values.astype("<u2").tobytes())
        content = content.replace(struct.pack("<HHII", 256, 4, 1, 48), struct.pack("<HHII", 256, 4, 1, 16))
        content = content.replace(struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 1, 3))
    else:
        content = f"P6 16 16 {2**bits - 1} ".encode() + values.astype(">u2").tobytes()
    difference = pixels_of(content, tmp_path) - scaled(values, bits)
    assert np.abs(difference).max() <= 1


def over_white(colours: Array, alpha: Array) -> Array:
    alpha = alpha / 255
    return np.asarray(colours * alpha + WHITE * (1 - alpha))


def test_transparent_pixels_show_white_and_not_their_hidden_colours(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    coloured, grey = np.concatenate([COLOURS, alpha], axis=2), np.concatenate([COLOURS[..., :1], alpha], axis=2)
    of_grey = np.broadcast_to(over_white(COLOURS[..., :1], alpha), COLOURS.shape)
    for content, expected in (
        (png(coloured, COLOUR_ALPHA, 8), over_white(COLOURS, alpha)),
        (png(coloured.astype(np.int64) * 257, COLOUR_ALPHA, 16), over_white(COLOURS, alpha)),
        (saved(Image.fromarray(coloured), "TIFF"), over_white(COLOURS, alpha)),
        (saved(Image.fromarray(coloured), "WEBP", lossless=True, exact=True), over_white(COLOURS, alpha)),
        (png(grey, GREY_ALPHA, 8), of_grey),
        (png(grey.astype(np.int64) * 257, GREY_ALPHA, 16), of_grey),
        (saved(Image.fromarray(grey, "LA"), "TIFF"), of_grey),
    ):
        pixels = pixels_of(content, tmp_path)
        assert (pixels[0] == WHITE).all()
        np.testing.assert_allclose(pixels[1], expected[1])
        np.testing.assert_allclose(pixels, expected, atol=1)
        assert (pixels_of(content, tmp_path, 1)[0] == WHITE).all()


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow does not write AVIF")
def test_avif_has_its_colours_and_its_alpha_on_white(tmp_path: Path) -> None:
    # At full resolution, as the format leaves open how coarser colours are interpolated; at best 3 levels are lost.
    loss = 3
    exact: dict[str, Any] = {"quality": 100, "subsampling": "4:4:4"}
    alpha = np.tile(np.linspace(0, 255, SIZE).astype(np.uint8), (SIZE, 1))
    opaque = saved(Image.fromarray(COLOURS), "AVIF", **exact)
    assert np.abs(pixels_of(opaque, tmp_path) - COLOURS.astype(np.int64)).max() <= loss
    transparent = saved(Image.fromarray(np.dstack([COLOURS, alpha])), "AVIF", **exact)
    assert np.abs(pixels_of(transparent, tmp_path) - over_white(COLOURS, alpha[..., None])).max() <= loss


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_that_of_its_bits(bits: int, tmp_path: Path) -> None:
    values = samples(bits)
    chosen = int(values[SIZE // 2 if bits > 1 else 0, 0, 0])
    pixels = pixels_of(png(values, GREY, bits, (b"tRNS", struct.pack(">H", chosen))), tmp_path, 1)
    expected = np.where(values == chosen, WHITE, scaled(values, bits))
    assert (expected != scaled(values, bits)).any()
    np.testing.assert_array_equal(pixels, expected)


def test_a_transparent_colour_is_white_and_one_of_16_bits_is_refused(tmp_path: Path) -> None:
    chosen = struct.pack(">3H", *COLOURS[3, 4])
    expected = COLOURS.copy()
    expected[3, 4] = WHITE
    np.testing.assert_array_equal(pixels_of(png(COLOURS, COLOUR, 8, (b"tRNS", chosen)), tmp_path), expected)
    refused(png(COLOURS.astype(np.int64) * 257, COLOUR, 16, (b"tRNS", chosen)), tmp_path, "save it with an alpha")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_with_and_without_transparency(bits: int, tmp_path: Path) -> None:
    palette = RNG.integers(0, 200, (2**bits, 3), dtype=np.uint8)
    alpha = np.full(2**bits, 255, dtype=np.uint8)
    values = RNG.integers(0, 2**bits, (SIZE, SIZE, 1))
    colours = (b"PLTE", palette.tobytes())
    expected = palette[values[..., 0]].astype(float)
    np.testing.assert_array_equal(pixels_of(png(values, PALETTE, bits, colours), tmp_path), expected)
    for transparent in (0, 128):  # Pillow tells the two apart
        alpha[1] = transparent
        pixels = pixels_of(png(values, PALETTE, bits, colours, (b"tRNS", alpha.tobytes())), tmp_path)
        np.testing.assert_allclose(pixels, over_white(expected, alpha[values]), atol=0.51)
    image = Image.fromarray(values[..., 0].astype(np.uint8), "P")
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(pixels_of(saved(image, "GIF"), tmp_path), expected)
    pixels = pixels_of(saved(image, "GIF", transparency=1), tmp_path)
    np.testing.assert_array_equal(pixels, np.where(values == 1, WHITE, expected))


def test_other_colour_spaces(tmp_path: Path) -> None:
    inks = RNG.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    image = Image.fromarray(inks, "CMYK")
    np.testing.assert_allclose(pixels_of(saved(image, "TIFF"), tmp_path), expected, atol=1)
    smooth = Image.new("CMYK", (SIZE, SIZE), (200, 30, 90, 40))
    expected = np.array([(255 - ink) * (255 - 40) / 255 for ink in (200, 30, 90)])
    np.testing.assert_allclose(pixels_of(saved(smooth, "JPEG", quality=100), tmp_path)[3, 3], expected, atol=3)
    luma, blue, red = RNG.integers(90, 160, (3, SIZE, SIZE)).astype(float)
    image = Image.fromarray(np.stack([luma, blue, red], axis=2).astype(np.uint8), "YCbCr")
    green = luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128)
    expected = np.stack([luma + 1.402 * (red - 128), green, luma + 1.772 * (blue - 128)], axis=2)
    np.testing.assert_allclose(pixels_of(saved(image, "TIFF"), tmp_path), expected, atol=1.5)


UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
    9: lambda a: a,  # not defined
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_as_their_orientation_says(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, expected = Image.fromarray(COLOURS), UPRIGHT[orientation](COLOURS)
    for kind, options in (
        ("PNG", {"exif": exif}),
        ("WEBP", {"exif": exif, "lossless": True}),
        ("TIFF", {"tiffinfo": {0x0112: orientation}}),
    ):
        np.testing.assert_array_equal(pixels_of(saved(image, kind, **options), tmp_path), expected)
    greys = Image.fromarray(samples(16)[..., 0].astype(np.uint16))
    turned = scaled(UPRIGHT[orientation](samples(16)), 16)
    np.testing.assert_array_equal(pixels_of(saved(greys, "PNG", exif=exif), tmp_path, 1), turned)
    plain = pixels_of(saved(image, "JPEG"), tmp_path)
    np.testing.assert_array_equal(pixels_of(saved(image, "JPEG", exif=exif), tmp_path), UPRIGHT[orientation](plain))


def test_pixels_without_a_defined_range_are_refused(tmp_path: Path) -> None:
    floats = Image.fromarray(RAMP[..., 0].astype(np.float32))
    refused(saved(floats, "TIFF"), tmp_path, "floating-point pixels have no defined range; save it with 8 or 16 bits")
    refused(b"Pf 16 16 -1.0 " + RAMP.astype("<f4").tobytes(), tmp_path, "floating-point")
    refused(tiff(16, 16, 32, 1, samples(32).astype("<u4").tobytes()), tmp_path, "32-bit pixels have no defined range")
    for bits in (8, 16, 32):
        signed = tiff(16, 16, bits, 1, samples(bits).astype(f"<u{bits // 8}").tobytes(), sample_format=2)
        refused(signed, tmp_path, "signed pixels have no defined range")
    refused(saved(Image.new("LAB", (SIZE, SIZE)), "TIFF"), tmp_path, "depend on a white point")


def test_only_well_known_formats_are_opened(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({mark}) (w) file closefile\nshowpage\n"
    contents = [
        eps.encode(),
        b"text",
        b"",
        saved(Image.new("P", (4, 4)), "BLP"),
        saved(Image.new("RGB", (4, 4)), "DDS"),
    ]
    for content in contents:
        refused(content, tmp_path, "not an image, or damaged; images are .*PNG")
    assert not mark.exists()


def test_what_is_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    content = {size: png(COLOURS, COLOUR, 8, size=size) for size in (9_000, 9_460, 20_000, 2**31 - 1)}
    refused(content[9_000], tmp_path, "damaged, or of a rare kind")  # of the size that is just allowed
    with pytest.warns(Image.DecompressionBombWarning):
        refused(content[9_460], tmp_path, "9460 × 9460 pixels; one image may have 89,478,485; make it smaller")
    for size in (20_000, 2**31 - 1):
        refused(content[size], tmp_path, "more than 89,478,485 pixels")


def test_a_changed_byte_of_a_png_is_noticed(tmp_path: Path) -> None:
    content = png(RNG.integers(0, 256, (SIZE, SIZE, 3)), COLOUR, 8)
    start = content.index(b"IDAT") + 4
    for place in (start + 20, len(content) // 2, len(content) - 20):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        refused(changed, tmp_path, "damaged")
    refused(content[: content.index(b"IEND") - 4], tmp_path, "damaged")


def test_of_several_frames_the_first_is_read_and_a_warning_tells(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        (tmp_path / f"a.{kind.lower()}").write_bytes(content)
        frames[0].save(tmp_path / f"still.{kind.lower()}")
    rows = [Row(f"list.txt:{i}", f"a.{kind}", None) for i, kind in enumerate(("gif", "webp", "png", "tiff"), start=1)]
    message = r"of 4 images with several frames the first frame is used, e\.g\. of a\.gif \(list\.txt:1\)"
    with pytest.warns(UserWarning, match=message):
        images, _ = load_images(tmp_path, rows, SIZE, lambda: None)
    assert all(image[:, 3, 3].tolist() == [255, 0, 0] for image in images[:])


@pytest.mark.filterwarnings("error")
def test_of_one_frame_no_warning_tells(tmp_path: Path) -> None:
    for kind in ("gif", "webp", "png", "tiff"):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"a.{kind}")
        load_images(tmp_path, [Row("list.txt:1", f"a.{kind}", None)], SIZE, lambda: None)


def test_pixels_of_an_older_decoding_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dadl.data.images.KEPT_IN_MEMORY", 0)
    (tmp_path / "a.png").write_bytes(png(samples(16), GREY, 16))
    rows = [Row("list.txt:1", "a.png", None)]
    for version in (1, 2):
        monkeypatch.setattr("dadl.data.images.DECODING", version)
        load_images(tmp_path, rows, SIZE, lambda: None)
        assert len(list((tmp_path / "cache" / "dadl").glob("*.npy"))) == version
    monkeypatch.undo()
    from dadl.data.images import DECODING

    assert DECODING >= 2  # 1 saturated 16-bit greys to white


def test_decoding_starts_no_program(tmp_path: Path) -> None:
    """In a process in which the start of any program is an error."""
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    code = (
        "import sys\n"
        "def audit(event, arguments):\n"
        "    if event in ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn'): raise SystemExit(event)\n"
        "sys.addaudithook(audit)\n"
        "from pathlib import Path\n"
        "from dadl.data.pixels import PixelsError, read_pixels\n"
        "try: read_pixels(Path(sys.argv[1]), 8, 3)\n"
        "except PixelsError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.eps")]
    job = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (job.returncode, job.stdout[:12]) == (0, "not an image"), job.stderr


def test_text_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**28)))
    refused(png(COLOURS, COLOUR, 8, text), tmp_path, "damaged")
