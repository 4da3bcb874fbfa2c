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
LEAST_CHANNELS, LEAST_PIXELS = 64, 200  # below, transforms take longer than the products save


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
    """Computes a 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3).

    Args:
      padding: zeros before and after each of the two axes.
    """
    source, of_kernel, result = transforms()
    sizes = [n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], padding, strict=True)]
    tiles = [-(-n // TILE) for n in sizes]
    # What the last tiles see beyond the padding reaches only pixels that are cut off; negative padding cuts.
    ends = [(before, t * TILE + 2 - n - before) for n, t, (before, _) in zip(x.shape[1:3], tiles, padding, strict=True)]
    first = x[0, 0, 0, 0]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*end, 0) for end in ends), (0, 0, 0)])
    spans = [(t - 1) * TILE + 1 for t in tiles]  # from the first to the last pixel of one place in the windows
    # Axis after axis, each as sums of shifted copies; the barrier keeps the first from being computed for each of six.
    x = jnp.stack(combine(source, [x[:, i : i + spans[0] : TILE] for i in range(WINDOW)]))
    x = jax.lax.optimization_barrier(x)
    x = jnp.stack(combine(source, [x[:, :, :, i : i + spans[1] : TILE] for i in range(WINDOW)]), 1)
    # As one product: XLA sums over axes of length 3 slowly. It adds a zero that depends on the input, or the kernels of
    # all layers would be transformed before the first layer, and held: a gigabyte.
    both = jnp.asarray(np.kron(of_kernel, of_kernel), x.dtype) + jnp.minimum(jnp.abs(first), 0)
    kernel = (both @ kernel.reshape(9, -1)).reshape(WINDOW, WINDOW, *kernel.shape[2:])
    out = jnp.einsum("ijbyxc,ijcd->ijbyxd", x, kernel)
    out = jax.lax.optimization_barrier(jnp.stack(combine(result, out)))
    out = jnp.stack(combine(result, [out[:, j] for j in range(WINDOW)]), -2)
    return rearrange(out, "i b y x j d -> b (y i) (x j) d")[:, : sizes[0], : sizes[1]]


def combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Returns matrix @ parts as sums of arrays, without the terms that are zero."""
    return [sum(float(factor) * part for factor, part in zip(row, parts, strict=True) if factor) for row in matrix]


def conv_general_dilated(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **settings: Any) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, in whose place `flax.linen.Conv` takes it.

    On a CPU, 3x3 convolutions of one image or a batch [b, h, w, c] in float32 with stride 1 are Winograd's where that
    is faster.
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
