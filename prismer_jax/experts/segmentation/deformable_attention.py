"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159): every query reads a few points of each map.

The original is a CUDA operator. Here each point of each head is four gathers, which XLA fuses into one pass over the
output: no array of all samples is ever made, and the gradient comes for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.typing import Array, Float, typed

Sizes = tuple[tuple[int, int], ...]  # (height, width) of each level


@typed
def deformable_attention(
    values: Float[Array, "b s heads d"],
    sizes: Sequence[tuple[int, int]],
    points: Float[Array, "b q heads levels points 2"],
    weights: Float[Array, "b q heads levels points"],
) -> Float[Array, "b q heads d"]:
    """Sums what bilinear interpolation reads from the maps at the points, weighted, in float32.

    Args:
      values: the maps of all levels one after the other, each row by row: s is the sum of their areas.
      sizes: (height, width) of each level.
      points: (x, y), 0 at the left or upper border of a map and 1 at the other. A pixel's centre is half a pixel from
        its border; beyond the border all is zero (`grid_sample` with align_corners=False and zero padding).
      weights: of each point; the caller has made them sum to 1 over levels and points.
    """
    batch, _, heads, depth = values.shape
    # All rows in one table, so that a row's number is enough to find the pixel, its head and its photo.
    table = values.reshape(-1, depth)
    photo, head = jnp.arange(batch)[:, None, None, None] * values.shape[1], jnp.arange(heads)[:, None]
    starts = np.cumsum([0, *(height * width for height, width in sizes)])
    out = jnp.zeros((*points.shape[:3], depth), jnp.float32)
    for level, (height, width) in enumerate(sizes):
        x, y = (points[:, :, :, level, :, axis] * size - 0.5 for axis, size in ((0, width), (1, height)))
        left, top = jnp.floor(x), jnp.floor(y)
        for j, i in np.ndindex(2, 2):
            column, row = left + i, top + j
            share = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row)) * weights[:, :, :, level]
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = jnp.where(inside, share, 0)
            pixel = starts[level] + jnp.where(inside, row * width + column, 0).astype(jnp.int32)
            at = (photo + pixel) * heads + head
            for point in range(points.shape[4]):
                near = table.at[at[..., point]].get(mode="promise_in_bounds")
                out += share[..., point, None] * near
    return out


class DeformableAttention(nn.Module):
    """The attention of one layer: values, points and weights are projections of what it is given.

    Attributes:
      sizes: (height, width) of each level.
      heads: how many.
      points: that each head reads of each level.
    """

    sizes: Sizes
    heads: int = 8
    points: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self, queries: Float[Array, "b q c"], x: Float[Array, "b s c"], references: Float[Array, "q 2"]
    ) -> Float[Array, "b q c"]:
        """Takes queries, the maps that they read (as `deformable_attention` does), and the point (x, y) of each query
        that its offsets start from, the same on every level. Offsets are in pixels of their level."""
        levels, width = len(self.sizes), x.shape[-1]

        def project(features: int, name: str, x: Array) -> Array:
            return nn.Dense(features, dtype=self.dtype, name=name)(x)

        values = project(width, "value", x)
        offsets = project(self.heads * levels * self.points * 2, "offsets", queries)
        weights = project(self.heads * levels * self.points, "weights", queries)
        values = rearrange(values, "b s (h d) -> b s h d", h=self.heads)
        offsets = rearrange(offsets, "b q (h l p xy) -> b q h l p xy", h=self.heads, l=levels, xy=2)
        weights = rearrange(weights, "b q (h k) -> b q h k", h=self.heads)
        weights = jax.nn.softmax(weights.astype(jnp.float32)).reshape(offsets.shape[:-1])
        pixels = np.asarray(self.sizes, np.float32)[:, None, ::-1]  # (width, height) of each level
        points = references[:, None, None, None] + offsets.astype(jnp.float32) / pixels
        out = deformable_attention(values, self.sizes, points, weights).astype(x.dtype)
        return project(width, "out", rearrange(out, "b q h d -> b q (h d)"))
