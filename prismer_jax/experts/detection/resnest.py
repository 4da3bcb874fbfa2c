"""ResNeSt: a residual network whose 3x3 convolutions are split-attention blocks (Zhang et al., arXiv 2004.08955).

The variant of UniDet's detectors: deep stem, cardinality 1, averages instead of strided convolutions. Source of the
constants: xingyizhou/UniDet, unidet/modeling/backbone/{resnest,splat}.py.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts.convolution import ConvNorm
from prismer_jax.experts.winograd import conv_general_dilated
from prismer_jax.towers.layers import torch_uniform
from prismer_jax.towers.stem import BatchNorm
from prismer_jax.typing import Array, Float, typed

RADIX = 2  # branches of a split-attention block
REDUCTION, NARROWEST = 4, 32  # the attention's hidden layer: so much narrower than the branches together, at least this
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 200: (3, 24, 36, 3)}  # of each stage, by the network's depth


class SplitAttention(nn.Module):
    """A 3x3 convolution in RADIX branches, each on its share of the input's channels; their mixture is the output.

    For every channel a softmax over the branches, computed from the means of their sum over the image, says how much of
    each goes in.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w {self.features}"]:
        share, hidden = x.shape[-1] // RADIX, max(self.features * RADIX // REDUCTION, NARROWEST)
        shape = (3, 3, share, RADIX * self.features)
        kernel = self.param("kernel", torch_uniform(9 * share), shape).astype(self.dtype)
        # One convolution a branch: XLA's grouped convolution takes several times as long on a CPU.
        conv = functools.partial(conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        pairs = zip(jnp.split(x, RADIX, -1), jnp.split(kernel, RADIX, -1), strict=True)
        branches = [conv(part, k, (1, 1), "SAME") for part, k in pairs]
        y = jax.nn.relu(BatchNorm(name="norm")(jnp.concatenate(branches, -1)))
        branches = jnp.split(y, RADIX, -1)
        means = sum(branches).mean((1, 2), keepdims=True)
        weights = jax.nn.relu(ConvNorm(hidden, 1, dtype=self.dtype, name="squeeze")(means))
        weights = nn.Conv(RADIX * self.features, (1, 1), dtype=self.dtype, name="attend")(weights)
        weights = jax.nn.softmax(rearrange(weights, "b h w (r c) -> r b h w c", r=RADIX), 0)
        return sum(branch * weight for branch, weight in zip(branches, weights, strict=True))


class Bottleneck(nn.Module):
    """1x1 convolution to `width`, split attention, 1x1 convolution to `features`, around a shortcut."""

    features: int
    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W {self.features}"]:
        def conv(features: int, name: str) -> ConvNorm:
            return ConvNorm(features, 1, bias=False, dtype=self.dtype, name=name)

        y = jax.nn.relu(conv(self.width, "reduce")(x))
        y = SplitAttention(self.width, self.dtype, name="split")(y)
        if self.stride > 1:  # zeros outside count in the mean, as in PyTorch's default
            y = nn.avg_pool(y, (3, 3), (self.stride,) * 2, ((1, 1), (1, 1)))
        y = conv(self.features, "expand")(y)
        if self.features != x.shape[-1]:
            x = nn.avg_pool(x, (self.stride,) * 2, (self.stride,) * 2) if self.stride > 1 else x
            x = conv(self.features, "shortcut")(x)
        return jax.nn.relu(x + y)


class ResNeSt(nn.Module):
    """From an image whose sides are multiples of 32 to maps at 1/4, 1/8, 1/16 and 1/32 of its size.

    Attributes:
      blocks: of each stage.
      stem: channels of the first two convolutions; the third has twice as many.
      width: inner channels of the first stage's blocks; they double with each stage.
      features: channels of the first stage's map; they double too.
    """

    blocks: tuple[int, ...] = BLOCKS[200]
    stem: int = 64
    width: int = 64
    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        x = x.astype(self.dtype)
        for i, channels in enumerate((self.stem, self.stem, 2 * self.stem)):
            conv = ConvNorm(channels, 3, 1 if i else 2, 1, bias=False, dtype=self.dtype, name=f"stem_{i}")
            x = jax.nn.relu(conv(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        self.sow("intermediates", "stem", x)
        maps = []
        for i, length in enumerate(self.blocks):
            sizes = {"features": self.features << i, "width": self.width << i, "dtype": self.dtype}
            x = Bottleneck(**sizes, stride=2 if i else 1, name=f"stage_{i}_first")(x)
            if length > 1:  # equal blocks are compiled once
                repeat = nn.scan(
                    lambda block, x, _: (block(x), None),
                    variable_axes={"params": 0, "batch_stats": 0},
                    split_rngs={"params": True},
                    length=length - 1,
                )
                x, _ = repeat(Bottleneck(**sizes, name=f"stage_{i}_rest"), x, None)
            maps.append(x)
        return maps
