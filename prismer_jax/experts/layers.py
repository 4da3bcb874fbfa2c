"""What several experts share: layers in the networks' layouts, and resizing as the reference's libraries do it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from prismer_jax.models.stem import linear_taps


def resize_photo(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h, w, 3] to (H, W) by Pillow's bilinear filter, antialiased when shrinking.

    It is what torchvision.transforms.Resize does to a PIL image. Proportions are not kept.
    """
    return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_map(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes float32 [h, w, *c] to [H, W, *c] on the host: bilinear with aligned corners, as `models.stem.resize`."""
    for axis, new in enumerate(size):
        if new != x.shape[axis]:
            taps, weights = linear_taps(x.shape[axis], new)
            broad = (-1, *(1,) * (x.ndim - 1 - axis))
            low, high = (np.take(x, taps[:, i], axis) * weights[:, i].reshape(broad) for i in range(2))
            x = low + high
    return x


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Numbers of [0, 1] as 8 bits, cut off as the reference does it, not rounded; what is outside is clipped."""
    return (np.clip(x, 0, 1) * np.float32(255)).astype(np.uint8)
