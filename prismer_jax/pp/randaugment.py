"""RandAugment (Cubuk et al., arXiv 1909.13719) with the reference's ten moves, on a photo and its label maps."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from prismer_jax import labels
from prismer_jax.errors import UserError
from prismer_jax.pp.augment import refuse_objects
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
        refuse_objects(example, "randaugment")
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
        return dict(example, image=np.asarray(_colour(Image.fromarray(image), move, value)))
    size = image.shape[1], image.shape[0]
    affine = _affine(move, sign * value, *size)
    # The reference rotates photos by the nearest pixel, though it shears and shifts them bilinearly.
    moved = _rotated(image, affine) if move == "rotate" else slide(image, affine)
    out = dict(example, image=moved)
    out.update({f"labels/{name}": move_label(name, label, affine, size) for name, label in maps(example).items()})
    return out


def _rotated(image: np.ndarray, affine: Affine) -> np.ndarray:
    photo = Image.fromarray(image)
    return np.asarray(photo.transform(photo.size, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST))


def slide(image: np.ndarray, affine: Affine) -> np.ndarray:
    """Moves pixels uint8 [h, w, 3] along one axis only, bilinearly; black comes in from outside.

    What Pillow's transform gives, in half of its time: the same sums in the same order in float64 (its Geometry.c), as
    a whole number that comes out a hair smaller is one grey level less. `affine` is (1, b, c, 0, 1, 0), along x, or
    (1, 0, 0, d, 1, f), along y.
    """
    height, width = image.shape[:2]
    _, b, c, d, _, f = affine
    along = 0 if d == f == 0 else 1
    x, out = np.arange(width) + 0.5, np.empty_like(image)
    mixed, weights = np.empty((2, min(SLAB, height), width, 3))  # once: fresh memory costs more than what is done in it
    for top in range(0, height, SLAB):
        rows = slice(top, min(top + SLAB, height))
        y = np.arange(rows.start, rows.stop)[:, None] + 0.5
        at = x + b * y + c if along == 0 else d * x + y + f
        outside = (at < 0) | (at >= image.shape[1 - along])
        at -= 0.5
        low = np.floor(at)
        grid = np.empty((*at.shape, 2), np.int16)
        grid[..., along], grid[..., 1 - along] = low, y if along == 0 else x
        first = cv2.remap(image, grid, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        grid[..., along] += 1
        second = cv2.remap(image, grid, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        at -= low
        weight, mix = cv2.merge([at] * 3, weights[: len(at)]), mixed[: len(at)]
        np.subtract(second, first, out=mix, dtype=np.float64)
        mix *= weight
        mix += first
        out[rows] = mix
        out[rows][outside] = 0
    return out


def _colour(image: Image.Image, move: str, value: float) -> Image.Image:
    match move:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(value)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(value)
        case _:
            raise ValueError(move)


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


def move_label(name: str, label: np.ndarray, affine: Affine, photo: tuple[int, int]) -> np.ndarray:
    """Applies to a label map the affine map of the photo's pixels, expressed in the label's own."""
    height, width, channels = label.shape
    sx, sy = width / photo[0], height / photo[1]
    a, b, c, d, e, f = affine
    own = (a, b * sx / sy, c * sx, d * sy / sx, e, f * sy)
    fill = labels.EXPERTS[name].fill
    image = Image.fromarray(np.ascontiguousarray(label if channels > 1 else label[..., 0]))
    moved = image.transform(
        image.size,
        Image.Transform.AFFINE,
        own,
        Image.Resampling.NEAREST,
        fillcolor=(fill,) * 3 if channels > 1 else fill,
    )
    return np.asarray(moved).reshape(label.shape)
