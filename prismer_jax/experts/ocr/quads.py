"""Boxes as four corners: rotated rectangles, how much they overlap, merging many guesses of one box, and filling them.

Arrays of boxes are [n, 4, 2]: corners (x, y) in pixels, from top left on clockwise as the text in them reads.
Source: NVlabs/prismer, experts/ocr_detection/charnet/modeling/rotated_nms.py, utils.py.
"""

from __future__ import annotations

import numpy as np

from prismer_jax.typing import Float, Int, UInt8, typed

NOTHING = 1e-9  # square pixels that are but rounding, where boxes only touch
SAME = 0.5  # overlap (intersection over union) above which two guesses are averaged


@typed
def rectangles(
    centre: Float[np.ndarray, "n 2"], sides: Float[np.ndarray, "n 4"], angle: Float[np.ndarray, "#n"]
) -> Float[np.ndarray, "n 4 2"]:
    """Returns rotated rectangles, float32.

    Args:
      centre: (x, y) of the point that each turns about.
      sides: distances from there to top, bottom, left and right; no less than 0.
      angle: radians, clockwise.
    """
    top, bottom, left, right = sides.T.astype(np.float64)
    x, y = np.stack([-left, right, right, -left], 1), np.stack([-top, -top, bottom, bottom], 1)
    cos, sin = (function(angle.astype(np.float64))[:, None] for function in (np.cos, np.sin))
    return (centre[:, None] + np.stack([x * cos - y * sin, x * sin + y * cos], -1)).astype(np.float32)


def areas(polygons: Float[np.ndarray, "n k 2"]) -> Float[np.ndarray, " n"]:
    """Returns the areas of quadrangles, in float64."""
    return _areas(_plane(polygons))


def overlaps(a: Float[np.ndarray, "#n 4 2"], b: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, " n"]:
    """Returns intersection over union of the pairs; 0 where a box has no area.

    Args:
      a: convex.
      b: any simple polygons.
    """
    a, b = _plane(a), _plane(b)
    points = b
    for start, end in zip(a.T, _following(a).T, strict=True):
        points = _cut(points, start[:, None], end[:, None])
    area_a, area_b = _areas(a), _areas(b)
    inside = _areas(points)
    inside = np.where((area_a > 0) & (inside > NOTHING), inside, 0)
    union = area_a + area_b - inside
    return inside / np.where(union > 0, union, 1)


def _plane(points: np.ndarray) -> np.ndarray:
    """Points [..., 2] as complex numbers x + iy: half the operations."""
    return np.ascontiguousarray(points, np.float64).view(np.complex128)[..., 0]


def _following(points: np.ndarray) -> np.ndarray:
    """The point after each of a polygon's, [n, k]."""
    return np.concatenate([points[:, 1:], points[:, :1]], 1)


def _areas(polygons: np.ndarray) -> np.ndarray:
    """Returns areas by the shoelace formula."""
    # Relative to a corner: far from the origin the products' differences would be lost to rounding.
    points = polygons - polygons[:, :1]
    return np.abs((points.conj() * _following(points)).imag.sum(1)) / 2


def _cut(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Cuts polygons [n, k] off along a line each, keeping what is on its right (Sutherland and Hodgman's step).

    What is beyond the line is not taken out but moved onto it, where it has no area: polygons of any kind are cut with
    the same operations. The result has 2k points.
    """
    way = end - start
    depth = (way.conj() * (points - start)).imag  # distance from the line, times the length of the way
    square = np.square(np.abs(way))
    moved = points - 1j * way * (np.minimum(depth, 0) / np.where(square > 0, square, 1))
    after = _following(depth)
    crosses = depth * after < 0
    share = depth / np.where(crosses, depth - after, 1)
    crossing = np.where(crosses, points + share * (_following(points) - points), moved)
    return np.stack([moved, crossing], 2).reshape(len(points), 2 * points.shape[1])


def bounds(boxes: Float[np.ndarray, "n 4 2"]) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Returns the least and the largest coordinates of each box."""
    return boxes.min(1), boxes.max(1)


@typed
def merge(
    boxes: Float[np.ndarray, "n 4 2"],
    scores: Float[np.ndarray, " n"],
    threshold: float,
    features: Float[np.ndarray, "n k"],
) -> tuple[Float[np.ndarray, "m 4 2"], Float[np.ndarray, " m"], Float[np.ndarray, "m k"]]:
    """Suppresses non-maxima, which are averaged into those that stay.

    Box by box, the surest first: those left that overlap with it by more than `threshold` go, and it becomes the mean,
    weighted by scores, of itself and those of more than SAME. A box without any such companion is noise: it goes too
    (what it made go does not come back). Equal scores: the one given first.

    Args:
      boxes: rectangles.
      features: averaged along with the corners; [n, 0] for none.

    Returns:
      The boxes, their scores (of the surest guess, not averaged) and features, the surest first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, scores, features = boxes[order], scores[order], features[order]
    low, high = bounds(boxes)
    left = np.ones(len(boxes), bool)
    chosen, corners, means = [], [], []
    for i in range(len(boxes)):
        if not left[i]:
            continue
        left[i] = False
        near = np.flatnonzero(left & ((low < high[i]) & (low[i] < high)).all(1))
        overlap = overlaps(boxes[i : i + 1], boxes[near])
        left[near[overlap > threshold]] = False
        same = near[overlap > SAME]
        if len(same):
            rows = [*same, i]  # the order of the sum, as in the reference
            weights = scores[rows, None]
            chosen.append(i)
            corners.append((boxes[rows].reshape(-1, 8) * weights).sum(0) / weights.sum())
            means.append((features[rows] * weights).sum(0) / weights.sum())
    if not chosen:
        return boxes[:0], scores[:0], features[:0]
    return np.stack(corners).reshape(-1, 4, 2), scores[chosen], np.stack(means)


def fill(image: UInt8[np.ndarray, "h w"], box: Int[np.ndarray, "4 2"], value: int) -> None:
    """Fills a convex box whose corners are pixels of the image, its outline included, in place.

    Exactly as cv2.fillPoly up to OpenCV 4.8, which the reference's masks are from. Later versions leave out pixels of
    slanted outlines that lie just between two.
    """
    height, width = image.shape
    first, last = np.full(height, width), np.full(height, -1)  # filled columns of each row
    for corner, following in zip(box.astype(int), np.roll(box.astype(int), -1, 0), strict=True):
        # Bresenham's line from its left end: a step sideways once more than half of it is due.
        start, end = (corner, following) if corner[0] <= following[0] else (following, corner)
        way = end - start
        steps = max(np.abs(way).max(), 1)
        done = -((steps - 2 * np.arange(steps + 1)[:, None] * np.abs(way)) // (2 * steps))
        columns, rows = (start + np.sign(way) * done).T
        # The nearest column of every row, the last excepted, in OpenCV's fixed-point numbers of 16 bits.
        top, bottom = (corner, following) if corner[1] <= following[1] else (following, corner)
        down = np.arange(bottom[1] - top[1])
        slope = int((bottom[0] - top[0]) * 2**16 / max(len(down), 1))
        columns = np.append(columns, (top[0] * 2**16 + down * slope + 2**15) >> 16)
        rows = np.append(rows, top[1] + down)
        np.minimum.at(first, rows, columns)
        np.maximum.at(last, rows, columns)
    x = np.arange(width)
    image[(x >= first[:, None]) & (x <= last[:, None])] = value
