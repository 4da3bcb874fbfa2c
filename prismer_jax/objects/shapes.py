"""Masks as COCO writes them, polygons and run lengths, and as PaliGemma sees them: 64 pixels square inside a box.

Source of the run lengths: cocodataset/cocoapi, common/maskApi.c. Columns are read one after the other; runs of nothing
and something take turns. The compressed form writes each run, from the fourth on less the run two before it, in groups
of five bits, lowest first, as characters from '0' on: 16 is the sign in the last group, 32 says that more follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from prismer_jax.errors import BadSample

SIDE = 64  # pixels of a mask inside its box
_FAR = 1e6  # pixels: no photo reaches so far
_FINER = 5  # times as fine as pixels are the sides of polygons (cocodataset/cocoapi, common/maskApi.c)


def mask_of(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns bool [height, width] of COCO's `segmentation`.

    Args:
      segmentation: polygons, each x, y, x, y ... in pixels; run lengths {"size", "counts"}, compressed or not; or an
        array, which is something where it is not 0.
      size: height and width of the photo.

    Raises:
      BadSample: it is none of these, or of another size.
    """
    if isinstance(segmentation, np.ndarray):
        mask = segmentation.reshape(segmentation.shape[:2]) > 0
    elif isinstance(segmentation, Mapping):
        mask = _unpacked(segmentation)
    elif isinstance(segmentation, Sequence) and segmentation and not isinstance(segmentation, str):
        return _drawn(segmentation, size)
    else:
        raise BadSample(f"a segmentation is {str(segmentation)[:60]!r}, neither polygons nor run lengths", "no mask")
    if mask.shape != tuple(size):
        raise BadSample(
            f"a mask has {mask.shape[0]}x{mask.shape[1]} pixels, its photo {size[0]}x{size[1]}", "mask size"
        )
    return mask


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Returns the compressed run lengths of bool [height, width], as pycocotools writes and reads them."""
    flat = np.concatenate([[False], np.asarray(mask, bool).ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        del counts[-1]
    return {"size": list(mask.shape), "counts": _packed(counts)}


def _packed(counts: list[int]) -> str:
    text = []
    for place, count in enumerate(counts):
        left = count - counts[place - 2] if place > 2 else count
        while True:
            group, left = left & 31, left >> 5
            last = left == (-1 if group & 16 else 0)
            text.append(chr(48 + group + (0 if last else 32)))
            if last:
                break
    return "".join(text)


def _counts(packed: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("it is no compressed run length")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def _unpacked(runs: Mapping[str, Any]) -> np.ndarray:
    try:
        height, width = map(int, runs["size"])
        counts = runs["counts"]
        counts = counts.decode() if isinstance(counts, bytes) else counts
        counts = np.asarray(_counts(counts) if isinstance(counts, str) else counts, np.int64)
        if (counts < 0).any() or counts.sum() != height * width:
            raise ValueError(f"runs of {counts.sum()} pixels for {height}x{width}")
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width, order="F")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadSample(f"a mask's run lengths cannot be read: {error}", "unreadable mask") from None


def _drawn(polygons: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """Returns the union of polygons, of each the pixels that maskApi.c's rleFrPoly takes."""
    mask = np.zeros(size, bool)
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            points = np.zeros((0, 2))
        if len(points) < 3 or not (np.abs(points) < _FAR).all():
            raise BadSample(
                f"a polygon is {str(polygon)[:60]}: it needs three points x, y in pixels", "unreadable mask"
            )
        mask |= _filled(points, size)
    return mask


def _filled(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a polygon's pixels, bool [height, width], of its corners x, y [n, 2].

    Its sides are drawn so many times finer, without gaps. Where they go over the middle of a column of pixels, what is
    below turns from outside to inside, or back.
    """
    height, width = size
    corners = np.trunc(points * _FINER + 0.5).astype(int)
    lines = [_line(*ends) for ends in zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True)]
    x, y = (np.concatenate(values) for values in zip(*lines, strict=True))
    over, y = np.minimum(x[1:], x[:-1]), np.minimum(y[1:], y[:-1])
    column, place = np.divmod(over - _FINER // 2, _FINER)
    there = (x[1:] != x[:-1]) & (place == 0) & (column >= 0) & (column < width)
    row = np.ceil(((y + 0.5) / _FINER - 0.5).clip(0, height)).astype(int)
    turns = np.bincount((column * height + row)[there], minlength=height * width + 1)[: height * width]
    return (np.cumsum(turns) % 2 == 1).reshape(size, order="F")


def _line(start: Sequence[int], end: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the points of a line from start to end, each a step along its longer axis."""
    along = int(abs(end[0] - start[0]) < abs(end[1] - start[1]))
    flipped = start[along] > end[along]  # from either end the points are the same
    low, high = (end, start) if flipped else (start, end)
    steps = np.arange(high[along] - low[along] + 1)
    slope = (high[1 - along] - low[1 - along]) / max(1, len(steps) - 1)
    both = [low[along] + steps, np.trunc(low[1 - along] + slope * steps + 0.5).astype(int)]
    x, y = reversed(both) if along else both
    return (x[::-1], y[::-1]) if flipped else (x, y)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Returns the box y1, x1, y2, x2 of bool [height, width], as fractions; None where nothing is in it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    height, width = mask.shape
    return rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width


def rounded(boxes: Any, sizes: Any) -> np.ndarray:
    """Returns the pixels of boxes [..., 4] of photos of (height, width, height, width): a half goes to the even one."""
    return np.rint(np.asarray(sizes, np.float32) * np.asarray(boxes, np.float32)).astype(np.int32)


def crop(mask: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Returns float32 [64, 64] in [0, 1]: the mask inside the box, whose corners are rounded to pixels.

    Raises:
      BadSample: the box holds no pixel.
    """
    y1, x1, y2, x2 = rounded(box, mask.shape * 2)
    inside = mask[max(y1, 0) : y2, max(x1, 0) : x2]
    if not inside.size:
        raise BadSample(
            f"the box {[round(float(v), 4) for v in box]} holds no pixel of {mask.shape}", "box of no pixels"
        )
    picture = Image.fromarray(inside.astype(np.float32))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the pixels y1, x1, y2, x2 of a box, cut off, not rounded."""
    (y1, x1, y2, x2), (height, width) = box, size
    return int(y1 * height), int(x1 * width), int(y2 * height), int(x2 * width)


def pasted(decoded: np.ndarray, box: Sequence[float], size: tuple[int, int]) -> np.ndarray | None:
    """Returns bool [height, width] of what a codec has decoded, float32 [64, 64], positive where something is.

    None where the box has no pixel.
    """
    y1, x1, y2, x2 = pixels(box, size)
    if y2 <= y1 or x2 <= x1:
        return None
    inside = Image.fromarray(np.asarray(decoded, np.float32)).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = np.asarray(inside) > 0
    return mask
