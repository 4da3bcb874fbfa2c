"""Label maps read from PNGs: with care, for files may be damaged or of another kind."""

from __future__ import annotations

import importlib
import io

import cv2
import numpy as np
from PIL import Image

from prismer_jax.errors import BadSample, choose
from prismer_jax.labels import EXPERTS, LabelKind

DAMAGED = "damaged label"  # the reason of a BadSample
MAX_PIXELS, MAX_SIDE = 100_000_000, 32_766  # of any image: more is a mistake or an attack, and beyond cv2.remap
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
STORED, ROWS = (b"IDATx\x01\0", b"IDATx\x01\1"), "prismer_jax.label_rows"  # imported where a record has such a map


def decode(expert: str, data: bytes, where: str = "a label map") -> np.ndarray | None:
    """Decodes a label PNG to uint8 [h, w, channels]; None of zero bytes, by which a record says that there is none.

    Raises:
      BadSample: not a whole image of 8 bits, colours where grey is meant, or class ids beyond the expert's table.
    """
    row = choose("expert", expert, EXPERTS)
    if not data:
        return None
    if (label := _decode_plain(row, data)) is None:
        label = _decode_any(row, data, where)
    # 255 + 1 wraps to 0: the background is no class.
    if row.embed == "classes" and int((label + np.uint8(1)).max()) > row.num_classes:
        raise BadSample(f"{where}: has class ids beyond the {row.num_classes} of {expert} (255 is the background).")
    return label


def _decode_plain(row: LabelKind, data: bytes) -> np.ndarray | None:
    """The usual case, three times as fast: a whole PNG of 8 bits and of just these channels; None for anything else."""
    header = b"\x08\x00" if row.channels == 1 else b"\x08\x02"  # bit depth, colour type (grey, RGB)
    size = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    if data[:8] != PNG_START or data[24:26] != header or not data.endswith(PNG_END) or too_large(*size):
        return None
    if data[37:44] in STORED and (label := importlib.import_module(ROWS).decode(data, row.channels)) is not None:
        return label
    flags = cv2.IMREAD_UNCHANGED if row.channels == 1 else cv2.IMREAD_COLOR_RGB
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.ndim != (2 if row.channels == 1 else 3):
        return None
    return pixels.reshape(*pixels.shape[:2], row.channels)


def too_large(width: int, height: int, max_pixels: int = MAX_PIXELS) -> bool:
    """Returns whether an image of this size, as its header claims, is refused before it is unpacked."""
    return width * height > max_pixels or max(width, height) > MAX_SIDE


def _decode_any(row: LabelKind, data: bytes, where: str) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data))
        if too_large(*image.size):
            raise ValueError(f"{image.width}x{image.height} pixels are too many")
        image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on broken files
        said = str(error).partition(" <")[0]  # without Python's name for the bytes
        raise BadSample(f"{where}: cannot be read as an image ({said}). Make the label again.", DAMAGED) from None
    grey = row.channels == 1
    if grey and (image.mode == "L" or (image.mode == "P" and row.storage == "ids")):  # a palette's indices are the ids
        return np.asarray(image)[..., None]
    modes = ("RGB", "RGBA") if grey else ("RGB", "RGBA", "P")
    pixels = np.asarray(image.convert("RGB")) if image.mode in modes else None
    if pixels is None or (grey and (pixels != pixels[..., :1]).any()):
        seen = "is in colour" if pixels is not None else f"has mode {image.mode}"
        kind = "grey" if grey else "RGB"
        raise BadSample(f"{where}: {row.name} labels are {kind} images of 8 bits, this one {seen}.")
    return pixels[..., : row.channels]
