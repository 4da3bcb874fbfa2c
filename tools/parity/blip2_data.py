"""BLIP-2's golden case of images."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from prismer_jax.models.prismer.model import normalize
from prismer_jax.pp import augment, blip, randaugment
from prismer_jax.pp.image import resized

from .case import Case, Check, Outputs, index_of, levels, relative

# OpenCV's rounding differs between versions by a grey level at most.
GREY_LEVEL = Check(levels, 1.0)


def images(case: Case) -> Outputs:
    """Resizes and cuts photos, and moves one as BLIP's RandAugment does."""
    for name in case.inputs(r"(img\d+)"):
        for size in case.config["eval_sizes"]:
            yield _resized(case, f"out/eval{size}_{name}", case[name], size)
    for number, (top, left, height, width, flipped) in enumerate(case.arrays["int/train_boxes_top_left_h_w_flip"]):
        photo = case[f"img{number}"][top : top + height, left : left + width]
        photo = augment.flip(float(flipped))({"image": photo}, np.random.default_rng(0))["image"]
        yield _resized(case, f"out/train_img{number}", photo, 224)
    moves = {move.replace("_", ""): move for move in ("identity", *randaugment.COLOUR, *blip.GEOMETRY)}
    for name in case.arrays:
        if name.startswith("out/ra_"):
            move, _, draw = index_of(name)[0].removeprefix("out/ra_").partition("_rand")
            moved = blip.apply(
                {"image": case["ra"]}, moves[move.lower()], case.config["rand_augment"]["M"], float(draw)
            )
            yield name, moved["image"], GREY_LEVEL


def _resized(case: Case, base: str, photo: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """Returns `base` and a photo [3, size, size] as a model takes it.

    Pillow rounds between rows and columns. Pillow 13, which wrote the case, begins with the cheaper side, older ones,
    and `resized`, with the rows: so what it gives of the photo on its side is a right answer, too.
    """
    stored = next(name for name in case.arrays if index_of(name)[0] == base)
    ways = resized(photo, (size, size)), resized(photo.swapaxes(0, 1), (size, size)).swapaxes(0, 1)
    normalized = (np.asarray(normalize(jnp.asarray(way)[None]))[0].transpose(2, 0, 1) for way in ways)
    return base, min(normalized, key=lambda way: relative(way[index_of(stored)[1]], case.arrays[stored]))
