"""The feature pyramid network of a detector: maps of one width at five scales (Lin et al., arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.experts.convolution import ConvNorm
from prismer_jax.typing import Array, Float, typed

FIRST = 3  # level l has a stride of 2**l pixels
LEVELS = 5


class FPN(nn.Module):
    """Three maps, each of half the size of the one before, become the levels p3 to p7.

    The coarser map is added, enlarged by repetition, to the finer one. p6 is made of p5, and p7 of p6, by strided
    convolutions (LastLevelP6P7_P5 in xingyizhou/UniDet, unidet/modeling/backbone/resnest.py).
    """

    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ {self.features}"]]:
        def conv(kernel: int, name: str) -> ConvNorm:
            padding = kernel // 2
            return ConvNorm(self.features, kernel, padding=padding, bias=False, dtype=self.dtype, name=name)

        levels: list[Array] = []
        above = None
        for level in reversed(range(FIRST, FIRST + len(maps))):
            x = conv(1, f"lateral_{level}")(maps[level - FIRST])
            above = x if above is None else x + above.repeat(2, 1).repeat(2, 2)
            levels.insert(0, conv(3, f"output_{level}")(above))
        for level in range(FIRST + len(maps), FIRST + LEVELS):
            x = levels[-1] if len(levels) == len(maps) else jax.nn.relu(levels[-1])
            levels.append(nn.Conv(self.features, (3, 3), 2, 1, dtype=self.dtype, name=f"top_{level}")(x))
        return levels
