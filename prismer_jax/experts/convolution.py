"""Convolutions as the convolutional experts use them, at inference: with batch normalisation, or upwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts.winograd import Conv
from prismer_jax.towers import layers
from prismer_jax.towers.stem import BatchNorm
from prismer_jax.typing import Array, Float, typed

Padding = int | str | Sequence[tuple[int, int]]


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm by running statistics, in `conv` and `norm`.

    The norm is a multiply-add for each channel, which the compiler puts into one pass with the bias and the activation
    after it; multiplied into the kernel it would cost a pass over all weights for every batch.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: Padding = 0
    bias: bool = True
    epsilon: float = layers.EPSILON
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W {self.features}"]:
        conv = Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            self.padding,
            use_bias=self.bias,
            dtype=self.dtype,
            name="conv",
        )
        return BatchNorm(epsilon=self.epsilon, name="norm")(conv(x))


@typed
def double(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"]) -> Float[Array, "b H W d"]:
    """Computes PyTorch's transposed convolution with stride 2, padding max(k/2 - 1, 0) and an even k: twice the size.

    Output pixel 2q + r takes from input pixel q + d the tap r + padding - 2d. So each of the four phases r is an
    ordinary convolution; all are one, whose channels are then dealt out to the pixels (as in sub-pixel convolution,
    arXiv 1609.05158). The zeros that stride 2 would put between pixels are never multiplied.

    Args:
      kernel: not flipped.
    """
    size = kernel.shape[0]
    reach = size // 4
    # Tap of phase r at offset d; those beyond the kernel are zeros.
    taps = np.arange(2) + size // 2 - 1 - 2 * np.arange(-reach, reach + 1)[:, None]
    edge = 2 * reach
    padded = jnp.pad(kernel, ((edge, edge), (edge, edge), (0, 0), (0, 0)))
    phases = padded[taps + edge][:, :, taps + edge]
    out = jax.lax.conv_general_dilated(
        x,
        rearrange(phases, "a r b s c d -> a b c (r s d)"),
        (1, 1),
        [(reach, reach)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return rearrange(out, "b h w (r s d) -> b (h r) (w s) d", r=2, s=2)


class Double(nn.Module):
    """A transposed convolution that doubles the size (see `double`), channels kept."""

    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        channels = x.shape[-1]
        init = layers.torch_uniform(self.kernel**2 * channels)
        kernel = self.param("kernel", init, (self.kernel, self.kernel, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return double(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


@typed
def depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int = 1) -> Float[Array, "b H W c"]:
    """Convolves each channel on its own, padding as TensorFlow's "SAME" (the larger half at the bottom and right).

    A sum of shifted copies, each times one tap: a single pass over the input, where XLA's grouped convolution takes
    ten to thirty times as long on a CPU.
    """
    size = kernel.shape[0]
    outs = [-(-n // stride) for n in x.shape[1:3]]
    spans = [(n - 1) * stride + 1 for n in outs]  # from the first to the last pixel that one tap sees
    missing = [max(span + size - 1 - n, 0) for span, n in zip(spans, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
    x = jax.lax.optimization_barrier(x)  # or the compiler makes the padded map anew for every tap
    total = 0
    for i, j in np.ndindex(size, size):
        total = total + x[:, i : i + spans[0] : stride, j : j + spans[1] : stride] * kernel[i, j, 0]
    return total


class Depthwise(nn.Module):
    """A depthwise convolution without bias (see `depthwise`)."""

    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        kernel = self.param("kernel", layers.torch_uniform(self.kernel**2), shape)
        return depthwise(x, kernel.astype(x.dtype), self.stride)
