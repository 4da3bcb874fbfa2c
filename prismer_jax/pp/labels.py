"""Ops on label maps alone, and how a map is resampled: by the nearest pixel, as ids cannot be averaged."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from prismer_jax import labels
from prismer_jax.pp.ops import Example, Op, register

Box = tuple[int, int, int, int]  # left, top, right, bottom in the photo's pixels


@register
def labels_for(experts: str | Sequence[str] = "all") -> Op:
    """Keeps the maps of these experts, drops others, and lets missing ones be empty (the background).

    Every example then has the same keys: the tables of instance classes and word features belong to their experts.
    Before `decode` it also saves decoding what is dropped.
    """
    names = labels.select(experts)
    tables = [labels.EXPERTS[name].table for name in names if labels.EXPERTS[name].table]

    def op(example: Example, rng: np.random.Generator) -> Example:
        out, there = {key: value for key, value in example.items() if not key.startswith("labels/")}, maps(example)
        out |= {key: example.get(key, labels.EMPTY_TABLES[key]) for key in tables}
        return out | {f"labels/{name}": there[name] if name in there else _empty(name, example) for name in names}

    return op


def _empty(name: str, example: Example) -> np.ndarray | bytes:
    """An empty map of the size of the maps beside it; before decoding, zero bytes, as of a record."""
    if not isinstance(example["image"], np.ndarray):
        return b""
    shape = next(v.shape for v in (*maps(example).values(), example["image"]) if isinstance(v, np.ndarray))
    return np.tile(labels.blank(name, *shape[-3:-1]), (*shape[:-3], 1, 1, 1))


def maps(example: Example) -> dict[str, np.ndarray]:
    """Returns the example's label maps by expert name, without the tables that go with them."""
    return {name: example[row.key] for name, row in labels.EXPERTS.items() if row.key in example}


def same_proportions(size: tuple[int, int], photo: tuple[int, int]) -> bool:
    """Returns whether a map (height, width) has the proportions of a photo, but for a pixel of its own."""
    return abs(size[1] * photo[0] - size[0] * photo[1]) <= max(photo)


def resample(example: Example, size: tuple[int, int], box: Box | None = None) -> dict[str, np.ndarray]:
    """Resamples every label map, or what lies in the box (pixels of the photo), to size (height, width).

    Takes the pixel under each centre, floor((i + 0.5) * in / out): the rule of Pillow's NEAREST, by which the
    reference resizes label files, to the bit.
    """
    photo = example["image"].shape[:2]
    out, grids = {}, {}
    for name, label in maps(example).items():
        shape = label.shape[:2]
        if shape != size or box is not None:
            if shape not in grids:  # mostly all maps of a photo have one size
                grids[shape] = _grid(shape, size, box or (0, 0, photo[1], photo[0]), photo)
            label = cv2.remap(label, grids[shape], None, cv2.INTER_NEAREST).reshape(*size, label.shape[2])
        out[f"labels/{name}"] = label
    return out


def _grid(shape: tuple[int, int], size: tuple[int, int], box: Box, photo: tuple[int, int]) -> np.ndarray:
    """Source pixel (x, y) of every pixel: int16 [height, width, 2]."""
    (height, width), (left, top, right, bottom) = shape, box
    grid = np.empty((*size, 2), np.int16)
    grid[..., 0] = _centres(left * width / photo[1], (right - left) * width / photo[1], width, size[1])
    grid[..., 1] = _centres(top * height / photo[0], (bottom - top) * height / photo[0], height, size[0])[:, None]
    return grid


def _centres(start: float, extent: float, length: int, count: int) -> np.ndarray:
    # Pillow adds up steps, and the rounding of that sum decides for centres on the edge between two pixels.
    steps = np.full(count, extent / count)
    steps[0] *= 0.5
    whole = int(start)
    centres = np.cumsum(steps) + (start - whole)
    return np.minimum(centres.astype(np.intp) + whole, length - 1)
