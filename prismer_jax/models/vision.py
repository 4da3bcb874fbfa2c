"""What families say of themselves whose vision transformer is called `vision` and reads a square grid of patches."""

from __future__ import annotations

import math

import jax.numpy as jnp

from prismer_jax.towers.layers import resize_positions
from prismer_jax.typing import Array


def _resized(table: Array, shape: tuple[int, int]) -> Array:
    """Returns positions [n d] for another grid; a class token's row, the first, stays as it is."""
    side = math.isqrt(shape[0])
    own = shape[0] - side**2
    return jnp.concatenate([table[:own], resize_positions(table[own:], (side, side))])


RESIZE = {"params/vision/position_embedding": _resized}

FEATURES = ("vision/.*",)  # the parameters that `features` reads
