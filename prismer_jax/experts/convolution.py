"""Convolutions as the convolutional experts use them, at inference: with batch normalisation, or upwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.models import layers
from prismer_jax.models.stem import BatchNorm
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
        conv = nn.Conv(
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
    """PyTorch's transposed convolution with stride 2, padding max(k/2 - 1, 0) and an even k: twice the size.

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
