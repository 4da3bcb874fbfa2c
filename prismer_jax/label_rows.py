"""Label maps as PNGs that are not compressed, for record files, which compress themselves.

zlib takes two to three milliseconds to unpack the six maps of a photo of 480 pixels, zstd less than one. So the shards
of a data set are compressed (shards/writer.py), and in the maps' PNGs the rows lie as they are, each as its difference
to the row above. They are PNGs for every reader; this one is for those that `encode` made.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from prismer_jax.label_png import PNG_START

UP = 2  # the filter of rows that are stored as differences to the row above (ISO/IEC 15948, section 9)
BLOCK = 16  # rows: differences are summed in blocks, then from block to block, as a call costs more than a row does


def encode(label: np.ndarray) -> bytes:
    """Encodes a label map uint8 [h, w, 1 or 3] as a PNG of stored rows."""
    height, width, channels = label.shape
    rows = np.full((height, 1 + width * channels), UP, np.uint8)
    rows[:, 1:] = label.reshape(height, -1)
    rows[1:, 1:] -= label.reshape(height, -1)[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
    return PNG_START + b"".join(parts)


def decode(data: bytes, channels: int) -> np.ndarray | None:
    """Returns the map uint8 [h, w, channels] of a PNG that `encode` made; None of any other.

    Checksums are left to the record file, which has its own.
    """
    width, height = struct.unpack(">II", data[16:24])
    if data[28] or int.from_bytes(data[33:37], "big") != len(data) - 57:  # interlaced, or of several chunks
        return None
    stride = 1 + width * channels
    try:
        rows = zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(data)[43:], height * stride)
    except zlib.error:
        return None
    if len(rows) != height * stride or set(rows[::stride]) != {UP}:
        return None
    pixels = np.frombuffer(rows, np.uint8).reshape(height, stride)[:, 1:].copy()
    blocks = pixels[: height // BLOCK * BLOCK].reshape(-1, BLOCK, width * channels)
    for row in range(1, BLOCK):
        blocks[:, row] += blocks[:, row - 1]
    for block in range(1, len(blocks)):
        blocks[block] += blocks[block - 1, -1]
    for row in range(max(1, len(blocks) * BLOCK), height):
        pixels[row] += pixels[row - 1]
    return pixels.reshape(height, width, channels)
