"""Bilinear interpolation of images as floats, and photos stretched to a square as PaliGemma reads them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from prismer_jax.errors import BadSample
from prismer_jax.pp.image import one_photo, shapes
from prismer_jax.pp.labels import resample
from prismer_jax.pp.ops import Example, Op, register


def squeezed(image: np.ndarray, size: int) -> np.ndarray:
    """Returns an image as float32 [size, size, 3] between 0 and 255, antialiased and not rounded.

    As PyTorch's `interpolate` and TensorFlow's `image.resize` do it: Pillow's filter on floats, one channel at a time.
    """
    channels = (Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3))
    return np.stack([channel.resize((size, size), Image.Resampling.BILINEAR) for channel in channels], axis=-1)


def interpolated(image: np.ndarray, size: int) -> np.ndarray:
    """Returns an image as float32 [size, size, 3], each pixel between four of its neighbours.

    The order of sums is that of TensorFlow's resize_bilinear_op.cc, as what is cut off afterwards hangs on last bits.
    """
    (top, bottom, down), (left, right, across) = (_neighbours(side, size) for side in image.shape[:2])
    x = image.astype(np.float32)
    x = x[:, left] + (x[:, right] - x[:, left]) * across[:, None]
    return x[top] + (x[bottom] - x[top]) * down[:, None, None]


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels before and behind each new centre, and how far it is from the first to the second."""
    at = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    first = np.floor(at)
    return np.maximum(first, 0).astype(int), np.minimum(np.ceil(at), old - 1).astype(int), at - first


@register
def stretch(size: int, antialias: bool = False, label_size: int | None = None, frames: int | None = None) -> Op:
    """Makes the photo uint8 [size, size, 3] whatever its proportions, labels by nearest.

    Several photos, or the frames of a video, become [frames, size, size, 3].

    What lies between two grey levels is cut off, not rounded, as in google-research/big_vision (pp/ops_image.py).

    Args:
      antialias: average what becomes one pixel; PaliGemma was trained without.
      label_size: of the label maps, by default `size`.
      frames: how many of several photos, evenly spaced from the first to the last; some more than once if need be.

    Raises (the op):
      BadSample: several photos, and `frames` is not given, or one or none where it is.
    """
    _, shape = shapes(size, label_size)
    make = squeezed if antialias else interpolated

    def squared(image: np.ndarray) -> np.ndarray:
        return make(image, size).clip(0, 255).astype(np.uint8)

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        if image is None or isinstance(image, list) != (frames is not None) or not len(image):
            number = len(image) if isinstance(image, list) else "no" if image is None else "one"
            raise BadSample(f"example {example.get('id', '?')} has {number} photos; frames={frames}.", "frames")
        if frames is None:
            return dict(example, image=squared(one_photo(example, "stretch"))) | resample(example, shape)
        chosen = np.linspace(0, len(image) - 1, frames).round().astype(int)
        return dict(example, image=np.stack([squared(image[number]) for number in chosen]))

    return op
