"""Ops that change photo and label maps: crops, mirroring, negatives, and noise in place of what experts see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from prismer_jax import labels
from prismer_jax.errors import UserError
from prismer_jax.pp.image import Size, one_photo, resized, shapes
from prismer_jax.pp.labels import maps, resample
from prismer_jax.pp.ops import Example, Op, register


@register
def random_resized_crop(
    size: Size,
    label_size: Size | None = None,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter: Literal["pillow", "opencv"] = "pillow",
) -> Op:
    """Cuts a random box of `scale` (of the area) and `ratio` (width to height, log-uniform) and resizes it as `resize`.

    The box is drawn as in Szegedy et al. (arXiv 1409.4842): ten tries, then the largest central box of a legal ratio.
    The reference has scale (0.5, 1.0) for fine-tuning and (0.5, 1.5) for pretraining.

    `filter='opencv'` takes a tenth of the time for other pixels: photos grow by OpenCV's bicubic filter, which is a
    little sharper than Pillow's, and shrink by means of areas. Label maps stay the same.
    """
    shape, label_shape = shapes(size, label_size)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise UserError(f"random_resized_crop({name}={(low, high)}): two positive numbers, the smaller first.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        example = without_box(example, "random_resized_crop")
        image = example["image"]
        height, width = image.shape[:2]
        top, left, h, w = _random_box(height, width, scale, ratio, rng)
        cut = image[top : top + h, left : left + w]
        return dict(example, image=FILTERS[filter](cut, shape)) | resample(
            example, label_shape, (left, top, left + w, top + h)
        )

    return op


def _by_opencv(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes a photo uint8 [H, W, 3] to shape (height, width), each axis by the filter that suits it."""
    for height, width in ((image.shape[0], shape[1]), shape):
        grows = height * width >= image.shape[0] * image.shape[1]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)
    return image


FILTERS = {"pillow": resized, "opencv": _by_opencv}


def _random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    draw = rng.random  # a tenth of the time of rng.uniform and rng.integers
    shortest, longest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draw())
        aspect = math.exp(shortest + (longest - shortest) * draw())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draw() * (height - h + 1)), int(draw() * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def without_box(example: Example, op: str) -> Example:
    """Returns an example for an op that moves pixels, without its `bbox`, which `outline` would draw where it was.

    Raises:
      UserError: it has `objects` (pp/objects.py), or not one photo.
    """
    if "objects" in example:
        raise UserError(f"{op}: boxes and masks of its objects would stay where they were. Leave {op} out.")
    one_photo(example, op)
    return {key: value for key, value in example.items() if key != "bbox"}


@register
def flip(p: float = 0.5, normals: Literal["mirror", "reference"] = "mirror") -> Op:
    """Mirrors photo and labels left to right with probability p.

    A mirrored surface's normal has the opposite x, which 'mirror' sets (red becomes 255 - red); 'reference' leaves it,
    as the official code does. Captions that say left or right, and words to read, become wrong: leave flip out there.
    """
    if not 0 <= p <= 1:
        raise UserError(f"flip({p}): a probability, 0 to 1.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        example = without_box(example, "flip")
        if rng.random() >= p:
            return example
        out = dict(example, image=cv2.flip(example["image"], 1))
        for name, label in maps(example).items():
            mirrored = cv2.flip(label, 1).reshape(label.shape)  # OpenCV drops an axis of one channel
            if name == "normal" and normals == "mirror":
                red, green, blue = mirrored[..., 0], mirrored[..., 1], mirrored[..., 2]
                # Exactly black is no unit vector: it is the empty map, which stays so.
                np.invert(red, out=red, where=(red | green | blue) != 0)
            out[f"labels/{name}"] = mirrored
        return out

    return op


@register
def negative() -> Op:
    """Turns a photo, or each of a list, into its negative, each value v into 255 - v; label maps stay as they are.

    Photos of another style, in which all that a model knows of shapes holds and nothing of colours does.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if isinstance(image := example["image"], list):
            return dict(example, image=[255 - photo for photo in image])
        return example if image is None else dict(example, image=255 - image)  # of a text alone

    return op


@register
def noise_labels(experts: str | Sequence[str] = "all", num_classes: int | None = None) -> Op:
    """Replaces what these experts see by noise, for studies of robustness: their maps then tell nothing of the photo.

    Every pixel is drawn by itself, uniformly: intensities of all values, ids of all classes, instances or words. Each
    instance's class is drawn too, and each word's features, from the distribution of `labels.class_vectors`. An expert
    of which the example has no map stays without one; the op stands behind `decode`.

    Source: noise experts, and noise from a uniform distribution, as in "Robustness to Noisy Experts" of the paper
    (arXiv 2303.02506); how ids become noise, it does not say.

    Args:
      experts: as in `labels.select`.
      num_classes: classes to draw from; None: those of the official table.
    """
    rows = [labels.EXPERTS[name] for name in labels.select(experts)]
    if num_classes is not None and not 1 <= num_classes <= 256:
        raise UserError(f"noise_labels(num_classes={num_classes}): a map has 1 to 256 classes.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        out = dict(example)
        for row in rows:
            if row.key not in example:
                continue
            classes = num_classes or row.num_classes
            values = classes if row.embed == "classes" else labels.BACKGROUND if row.storage == "ids" else 256
            out[row.key] = rng.integers(0, values, example[row.key].shape, np.uint8)
            if row.embed == "instances":
                out[labels.CLASSES_KEY] = rng.integers(0, classes, labels.MAX_IDS, np.int32)
            elif row.embed == "words":
                shape = (labels.MAX_IDS, labels.FEATURES)
                out[labels.WORDS_KEY] = rng.standard_normal(shape, np.float32).astype(np.float16)
                out.pop("words", None)
        return out

    return op
