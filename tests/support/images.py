"""Image files of given samples, written without Pillow."""

import struct
import zlib

import numpy as np
import numpy.typing as npt

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types


def png(
    samples: npt.NDArray[np.integer], colour_type: int, bits: int, *chunks: tuple[bytes, bytes], size: int = 0
) -> bytes:
    """A PNG of samples ``[H, W, channels]`` of up to 16 bits; its header says ``size``, if given, and not theirs."""
    height, width, channels = samples.shape
    rows = samples.reshape(height, width * channels)
    if bits < 8:
        digits = (rows[:, :, None] >> np.arange(bits)[::-1]) & 1
        rows = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", size or width, size or height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff(width: int, height: int, bits: int, photometric: int, data: bytes, **tags: int) -> bytes:
    """An uncompressed TIFF, little-endian, of one sample for each pixel; ``sample_format`` is the only other tag."""
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height}
    entries |= {279: len(data), 339: tags.get("sample_format", 1)}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data
