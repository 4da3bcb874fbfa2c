"""RandAugment (Cubuk et al., arXiv 1909.13719) with the reference's ten moves, on a photo and its label maps."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from prismer_jax import labels
from prismer_jax.errors import UserError
from prismer_jax.pp.augment import without_box
from prismer_jax.pp.labels import maps
from prismer_jax.pp.ops import Example, Op, register

Affine = tuple[float, float, float, float, float, float]  # output pixel (x, y) -> input (a x + b y + c, d x + e y + f)

# Strength at m = 0 and at m = 10 (dataset/randaugment.py of the reference). Geometric moves go to a random side.
GEOMETRY = {
    "shear_x": (0.0, 0.3),
    "shear_y": (0.0, 0.3),
    "translate_x": (0.0, 0.33),
    "translate_y": (0.0, 0.33),
    "rotate": (0.0, 30.0),
}
COLOUR = {"autocontrast": (0.0, 1.0), "equalize": (0.0, 1.0), "brightness": (0.1, 1.9), "sharpness": (0.1, 1.9)}
SLAB = 32  # rows at a time: what they need stays in the processor's cache
PLANS = 64  # that are kept: of a strength, each move to each side, of photos and of labels
LARGEST = 640 * 640  # pixels with a plan: of larger photos, which are mostly not resized yet, plans would fill memory
MOVES = ("identity", *GEOMETRY, *COLOUR)


@register
def randaugment(n: int = 2, m: float = 5) -> Op:
    """Applies n random moves of strength m (0 to 10). Colours change on the photo only; geometry moves labels along.

    Where the reference moves photo and labels by the same number of pixels though their sizes differ, here both move
    by the same fraction. Pixels from outside are black, and in labels the expert's fill value.
    """
    if n < 0 or not 0 <= m <= 10:
        raise UserError(f"randaugment(n={n}, m={m}): n is a count and m lies in 0 to 10.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        example = without_box(example, "randaugment")
        for move in rng.choice(len(MOVES), size=n):
            example = apply(example, MOVES[move], m, 1 if rng.random() < 0.5 else -1)
        return example

    return op


def apply(example: Example, move: str, m: float, sign: int) -> Example:
    """Applies one move by name; `sign` (1 or -1) is the side that a geometric one goes to."""
    if move == "identity":
        return example
    low, high = (GEOMETRY | COLOUR)[move]
    value = low + (high - low) * m / 10
    image = example["image"]
    if move in COLOUR:
        if move in ("brightness", "sharpness") and np.float32(value) == 1:  # as it is, at m = 5
            return example
        return dict(example, image=_colour(image, move, value))
    size = image.shape[1], image.shape[0]
    affine = _affine(move, sign * value, *size)
    # The reference rotates photos by the nearest pixel, though it shears and shifts them bilinearly.
    moved = _nearest(image, affine, 0) if move == "rotate" else slide(image, affine)
    return {**example, "image": moved, **move_labels(example, affine, size)}


@functools.lru_cache(PLANS)
def _sources(affine: Affine, width: int, height: int) -> np.ndarray:
    """Returns the pixel (x, y) that Pillow's transform takes for each by NEAREST: int16 [height, width, 2], or -1."""
    numbers = Image.fromarray(np.arange(width * height, dtype=np.int32).reshape(height, width))
    taken = numbers.transform(numbers.size, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST, fillcolor=-1)
    y, x = np.divmod(np.asarray(taken), width)
    return np.stack([np.where(y < 0, -1, x), y], axis=-1).astype(np.int16)


def _nearest(image: np.ndarray, affine: Affine, fill: int) -> np.ndarray:
    """Moves pixels uint8 [h, w, c] as Pillow's transform does by NEAREST; `fill` comes in from outside."""
    if image[..., 0].size > LARGEST:
        planes = [Image.fromarray(plane) for plane in np.moveaxis(image, -1, 0)]
        moved = [p.transform(p.size, Image.Transform.AFFINE, affine, fillcolor=fill) for p in planes]
        return np.stack(moved, axis=-1)
    sources = _sources(affine, image.shape[1], image.shape[0])
    border = dict(borderMode=cv2.BORDER_CONSTANT, borderValue=(fill,) * 3)
    return cv2.remap(image, sources, None, cv2.INTER_NEAREST, **border).reshape(image.shape)


class _Slide(NamedTuple):
    """What `slide` needs of a move: each pixel's first neighbour, the weight of the second, 255 where it is inside."""

    firsts: np.ndarray  # (x, y) int16 [h, w + 1, 2] along x, [h + 1, w, 2] along y: a second is the next one's first
    weights: np.ndarray  # float64 [h, w]
    inside: np.ndarray  # uint8 [h, w]


@functools.lru_cache(PLANS)
def _slide(affine: Affine, width: int, height: int) -> _Slide | None:
    """Returns the plan of a move along one axis; None for large photos, and where rounding parts neighbors."""
    if width * height > LARGEST:
        return None
    _, b, c, d, _, f = affine
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    along = 0 if d == f == 0 else 1
    at = x + b * y + c if along == 0 else d * x + y + f
    inside = (at >= 0) & (at < (width, height)[along])
    at -= 0.5
    low = np.floor(at)
    if (np.diff(low, axis=1 - along) != 1).any():
        return None
    firsts = np.empty((height + along, width + 1 - along, 2), np.int16)
    firsts[..., 1 - along] = np.arange(height)[:, None] if along == 0 else np.arange(width)
    firsts[:height, :width, along] = low
    if along == 0:
        firsts[:, -1, 0] = low[:, -1] + 1
    else:
        firsts[-1, :, 1] = low[-1] + 1
    return _Slide(firsts, at - low, np.where(inside, np.uint8(255), np.uint8(0)))


def slide(image: np.ndarray, affine: Affine) -> np.ndarray:
    """Moves pixels uint8 [h, w, 3] along one axis only, bilinearly; black comes in from outside.

    What Pillow's transform gives, in a quarter of its time: the same sums in the same order in float64 (its
    Geometry.c), as a whole number that comes out a hair smaller is one grey level less. `affine` is (1, b, c, 0, 1, 0),
    along x, or (1, 0, 0, d, 1, f), along y.
    """
    height, width = image.shape[:2]
    plan = _slide(affine, width, height)
    if plan is None:
        photo = Image.fromarray(image)
        return np.asarray(photo.transform(photo.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
    down, across = plan.firsts.shape[0] - height, plan.firsts.shape[1] - width
    out = np.empty_like(image)
    mixed, weights = np.empty((2, min(SLAB, height), width, 3))  # once: fresh memory costs more than what is done in it
    for top in range(0, height, SLAB):
        rows = slice(top, min(top + SLAB, height))
        both = plan.firsts[top : rows.stop + down]
        both = cv2.remap(image, both, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        first, second = both[: len(both) - down, :width], both[down:, across:]
        weight = cv2.merge([plan.weights[rows]] * 3, weights[: len(first)])
        mix = cv2.subtract(second, first, mixed[: len(first)], None, cv2.CV_64F)
        mix *= weight
        out[rows] = cv2.add(mix, first, mix, None, cv2.CV_64F)
    return cv2.copyTo(out, plan.inside)


def _colour(image: np.ndarray, move: str, value: float) -> np.ndarray:
    match move:
        case "autocontrast":
            return cv2.merge([cv2.LUT(plane, _stretched(plane)) for plane in cv2.split(image)])
        case "equalize":
            return cv2.merge([cv2.LUT(plane, _equalized(plane)) for plane in cv2.split(image)])
        case "brightness":
            return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(value))
        case "sharpness":
            return np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(value))
        case _:
            raise ValueError(move)


def _stretched(plane: np.ndarray) -> np.ndarray:
    """Returns the table uint8 [256] of Pillow's ImageOps.autocontrast, in float64 as there."""
    low, high, *_ = cv2.minMaxLoc(plane)
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    scale = 255.0 / (high - low)
    return (np.arange(256) * scale + -low * scale).astype(int).clip(0, 255).astype(np.uint8)


def _equalized(plane: np.ndarray) -> np.ndarray:
    """Returns the table uint8 [256] of Pillow's ImageOps.equalize."""
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(int)
    step = (plane.size - counts[plane.max()]) // 255
    if not step:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(counts) - counts
    return ((step // 2 + below) // step).clip(0, 255).astype(np.uint8)


def _affine(move: str, value: float, width: int, height: int) -> Affine:
    match move:
        case "shear_x":
            return 1, value, 0, 0, 1, 0
        case "shear_y":
            return 1, 0, 0, value, 1, 0
        case "translate_x":
            return 1, 0, value * width, 0, 1, 0
        case "translate_y":
            return 1, 0, 0, 0, 1, value * height
        case "rotate":  # counterclockwise about the centre, in degrees
            cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
            x, y = width / 2, height / 2
            return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
        case _:
            raise ValueError(move)


def move_labels(example: Example, affine: Affine, photo: tuple[int, int]) -> dict[str, np.ndarray]:
    """Applies to each label map the affine map of the pixels of a photo (width, height), expressed in the map's own."""
    moved, (a, b, c, d, e, f) = {}, affine
    for name, label in maps(example).items():
        sx, sy = label.shape[1] / photo[0], label.shape[0] / photo[1]
        own = (a, b * sx / sy, c * sx, d * sy / sx, e, f * sy)
        moved[f"labels/{name}"] = _nearest(label, own, labels.EXPERTS[name].fill)
    return moved
