"""Winograd's 3x3 convolution on a CPU: a quarter of the multiplications (arXiv 1509.09308).

A tile of 4x4 output pixels takes 6x6 input pixels. A convolution is a product of polynomials: both factors are
evaluated at six points of each axis, multiplied point by point, and what they make is read back from the values. So the
sum over channels is 36 matrix products for 16 pixels, in place of 9 for each pixel. XLA's own convolutions run at the
speed of matrix products, so nothing else makes them faster on a CPU (docs/performance.md). GPUs' libraries do this by
themselves, and on a TPU it would be inexact: both get XLA's convolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.typing import Array, Float, typed

TILE, WINDOW = 4, 6  # pixels on a side: of the output, and of the input that it takes
# And infinity. Rounding errors of random convolutions in float32 are four times those of a plain sum with these; with
# 0, 1, -1, 2, -2, which are the usual ones, they are eight times (measured against float64).
POINTS = (0, 0.75, -0.75, 1.5, -1.5)
LEAST_CHANNELS, LEAST_PIXELS = 32, 400  # below, transforms take longer than the products save
TOGETHER = 2**21  # transformed numbers, of input and output, that are held at once: they stay in a processor's cache


@functools.cache
def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the matrices of the input [6, 6], the kernel [6, 3] and the output [4, 6] along one axis, in float64.

    The convolution of six pixels x with a kernel k is output @ ((input @ x) * (kernel @ k)). By Toom and Cook: the
    transposes of evaluation at the points, infinity last, and of interpolation.
    """
    powers = np.vander(POINTS, WINDOW, increasing=True)
    others = [[q for q in POINTS if q != p] for p in POINTS]
    scale = np.array([np.prod(np.subtract(p, rest)) for p, rest in zip(POINTS, others, strict=True)])
    polynomials = [np.poly(rest)[::-1] for rest in others]
    source = np.vstack([np.pad(polynomials, ((0, 0), (0, 1))), np.poly(POINTS)[::-1]])
    kernel = np.vstack([powers[:, :3] / scale[:, None], np.eye(3)[-1]])
    return source, kernel, np.vstack([powers[:, :TILE], np.eye(TILE)[-1]]).T


@typed
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], padding: Sequence[tuple[int, int]]
) -> Float[Array, "b H W d"]:
    """Computes a 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3), strip by strip.

    Args:
      padding: zeros before and after each of the two axes; negative ones cut.
    """
    height, width = (n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], padding, strict=True))
    tall, wide = -(-height // TILE), -(-width // TILE)  # in tiles
    numbers = WINDOW**2 * len(x) * tall * wide * sum(kernel.shape[2:])
    together = max(TOGETHER, WINDOW**2 * math.prod(kernel.shape[2:]))  # each strip reads the whole kernel
    rows = -(-tall // -(-numbers // together))  # of tiles in a strip
    strips = -(-tall // rows)
    # What the last tiles see beyond the padding reaches only pixels that are cut off.
    (top, _), (left, _) = padding
    bottom, right = (n * TILE + 2 - m for n, m in ((strips * rows, x.shape[1] + top), (wide, x.shape[2] + left)))
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))

    source, of_kernel, result = transforms()
    # One product: XLA sums over axes of length 3 slowly. It adds a zero that depends on the input, or the kernels of
    # all layers would be transformed before the first layer, and held: a gigabyte.
    both = jnp.asarray(np.kron(of_kernel, of_kernel), x.dtype) + jnp.minimum(jnp.abs(x[0, 0, 0, 0]), 0)
    kernel = (both @ kernel.reshape(9, -1)).reshape(WINDOW, WINDOW, *kernel.shape[2:])

    def strip(i: Array) -> Float[Array, "b H W d"]:
        y = jax.lax.dynamic_slice_in_dim(padded, i * rows * TILE, rows * TILE + 2, 1)
        # Axis after axis, as sums of shifted copies. Barriers keep the first from being computed six times.
        y = jnp.stack(combine(source, [y[:, n : n + TILE * rows - 3 : TILE] for n in range(WINDOW)]))
        y = jax.lax.optimization_barrier(y)
        y = jnp.stack(combine(source, [y[:, :, :, n : n + TILE * wide - 3 : TILE] for n in range(WINDOW)]), 1)
        y = jnp.einsum("ijbyxc,ijcd->ijbyxd", y, kernel)
        y = jax.lax.optimization_barrier(jnp.stack(combine(result, y)))
        y = jnp.stack(combine(result, [y[:, n] for n in range(WINDOW)]), -2)
        return rearrange(y, "i b y x j d -> b (y i) (x j) d")

    out = jax.lax.map(strip, jnp.arange(strips))  # of one strip the compiler makes no loop
    return rearrange(out, "n b h w d -> b (n h) w d")[:, :height, :width]


def combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Returns matrix @ parts as sums of arrays, without the terms that are zero."""
    return [sum(float(factor) * part for factor, part in zip(row, parts, strict=True) if factor) for row in matrix]


def conv_general_dilated(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **settings: Any) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, in whose place `flax.linen.Conv` takes it.

    On a CPU, 3x3 convolutions in float32 with stride 1 are Winograd's where that is faster.
    """
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **settings)
    dilations = (*(settings.get("lhs_dilation") or (1,)), *(settings.get("rhs_dilation") or (1,)))
    ordinary = kernel.shape[:2] == (3, 3) and {*strides, *dilations, settings.get("feature_group_count", 1)} == {1}
    large = min(kernel.shape[2:]) >= LEAST_CHANNELS and math.prod(x.shape[:3]) >= LEAST_PIXELS
    if not (ordinary and large and x.dtype == jnp.float32):
        return plain(x, kernel)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding)
    return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(convolve, padding=padding), default=plain)


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
