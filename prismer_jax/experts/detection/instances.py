"""From detected boxes to a map of instances: duplicates go, and where boxes overlap the nearer object is in front.

The rules are those of NVlabs/prismer, experts/generate_objdet.py (get_mask_labels), bit for bit, with the arithmetic on
masks that the reference does where three or more boxes overlap; but a mask is only ever touched inside its box.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismer_jax.labels import BACKGROUND

DUPLICATE = 0.95  # boxes that overlap by more than this are one object, whatever their classes
MOST = BACKGROUND  # instances of a map, whose ids are 0 to 254

Window = tuple[int, int, int, int]  # top, left, bottom, right; in whole pixels


def instance_map(
    boxes: np.ndarray, classes: Sequence[int] | np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Draws each box as an instance.

    Of two boxes, one that lies wholly inside the other is in front; otherwise that with the greater mean of `depth` is.
    An instance keeps its number and class even where nothing of it is seen. More than 255 instances cannot be told
    apart in a map of bytes: the first 255 stay, the others are as if not detected (the reference would draw them as
    background).

    Args:
      boxes: float [n, 4] as (x1, y1, x2, y2) in pixels of `depth`, the surest first: it stays where others repeat it.
      classes: [n].
      depth: [h, w], greater is nearer.

    Returns:
      Map uint8 [h, w], BACKGROUND where there is no instance; the class of instance 0, 1, ...
    """
    windows: list[Window] = []
    drawn_indices: list[int] = []
    for i, box in enumerate(boxes):
        window = _window(box, depth.shape)
        if len(drawn_indices) < MOST and not any(_duplicate(window, other) for other in windows):
            windows.append(window)
            drawn_indices.append(i)
    masks = _occlude(windows, [_mean(depth, window) for window in windows])
    drawn = np.full(depth.shape, BACKGROUND, np.uint8)
    for i, (window, mask) in enumerate(zip(windows, masks, strict=True)):  # a later one wins what is still shared
        _inside(drawn, window)[mask > 0] = i
    return drawn, [int(classes[i]) for i in drawn_indices]


def _window(box: np.ndarray, shape: tuple[int, ...]) -> Window:
    """The pixels of a box: fractions are cut off, and what is outside as in a slice of an array."""
    x1, y1, x2, y2 = (int(value) for value in box)
    (top, bottom, _), (left, right, _) = slice(y1, y2).indices(shape[0]), slice(x1, x2).indices(shape[1])
    return top, left, max(top, bottom), max(left, right)


def _inside(array: np.ndarray, window: Window, origin: Window = (0, 0, 0, 0)) -> np.ndarray:
    """A view of the window in an array whose corner is that of `origin`."""
    top, left, bottom, right = window
    return array[top - origin[0] : bottom - origin[0], left - origin[1] : right - origin[1]]


def _area(window: Window) -> int:
    return (window[2] - window[0]) * (window[3] - window[1])


def _shared(a: Window, b: Window) -> Window:
    """The intersection, of area 0 where there is none."""
    top, left = max(a[0], b[0]), max(a[1], b[1])
    return top, left, max(top, min(a[2], b[2])), max(left, min(a[3], b[3]))


def _duplicate(a: Window, b: Window) -> bool:
    shared = _area(_shared(a, b))
    union = _area(a) + _area(b) - shared
    # Single precision, as the reference compares; two empty boxes are no duplicates.
    return union > 0 and np.float32(shared) / np.float32(union) > np.float32(DUPLICATE)


def _mean(depth: np.ndarray, window: Window) -> float:
    """Mean depth inside a box. The sum of 8-bit depths is exact in double precision: equal means compare as equal."""
    return float(_inside(depth, window).sum(dtype=np.float64)) / max(_area(window), 1)


def _occlude(windows: Sequence[Window], depths: Sequence[float]) -> list[np.ndarray]:
    """Returns for each window a mask of its size, positive where the instance is seen.

    Which is in front is decided by whole boxes. But what is taken from the one behind, if the other lies wholly inside
    it, is what is left of the other by then: that may be negative where several were taken already, and then gives
    back. So masks are numbers, in the reference's single precision, and not truth values.
    """
    masks = [np.ones((bottom - top, right - left), np.float32) for top, left, bottom, right in windows]
    for i, a in enumerate(windows):
        for j in range(i + 1, len(windows)):
            b = windows[j]
            shared = _shared(a, b)
            if not (area := _area(shared)):
                continue
            if area == _area(a):
                _inside(masks[j], a, b)[...] -= masks[i]
            elif area == _area(b):
                _inside(masks[i], b, a)[...] -= masks[j]
            elif depths[i] > depths[j]:
                _inside(masks[j], shared, b)[...] -= 1
            elif depths[i] < depths[j]:
                _inside(masks[i], shared, a)[...] -= 1
    return masks
