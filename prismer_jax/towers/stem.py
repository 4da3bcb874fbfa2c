"""Convolutional stems: the label map of an expert becomes tokens on the grid of image patches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.typing import Array, Float, Int, UInt8, typed

# Source: NVlabs/prismer, model/modules/vit.py. Maps of real numbers are resized by 16/patch and halved four times,
# maps of ids are resized by 4/patch first and halved twice, so that both end on a grid of one token a patch.
STRIDES = {"scaled": (2, 2, 2, 2), "ids": (2, 2, 1, 1)}
SCALE = {"scaled": 16, "ids": 4}
MOMENTUM = 0.1
INSTANCE_ROWS = 128  # of the embedding that tells the instances of an image apart


@functools.cache
def linear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two source rows int [new, 2] and their float32 weights [new, 2] of a bilinear resize of one axis.

    Corners are aligned (PyTorch's UpsamplingBilinear2d): row i of the output lies at i·(old-1)/(new-1).
    """
    at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    low = np.minimum(at.astype(int), max(old - 2, 0))
    weight = at - low
    return np.stack([low, np.minimum(low + 1, old - 1)], 1), np.stack([1 - weight, weight], 1).astype(np.float32)


@typed
def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b H W c"]:
    """Resizes bilinearly with aligned corners, in float32 whatever the type of `x`.

    Two gathered rows an output row: on a CPU five times as fast as a product with a matrix, which is mostly zeros.
    """
    for axis, new in zip((1, 2), size, strict=True):
        if new != (old := x.shape[axis]):
            taps, weights = linear_taps(old, new)
            along = [1 if a != axis else new for a in range(x.ndim)]
            near = (jnp.take(x, taps[:, i], axis).astype(jnp.float32) * weights[:, i].reshape(along) for i in range(2))
            x = sum(near).astype(x.dtype)
    return x


@typed
def resize_ids(
    ids: UInt8[Array, "b h w"], palette: Float[Array, "#b 256 c"], size: tuple[int, int]
) -> Float[Array, "b H W c"]:
    """Looks up `palette[b, ids]` and resizes the result (bilinear, aligned corners), reading only the pixels needed.

    A 64-channel map of the full resolution never exists: each output pixel mixes the rows of its four neighbours.
    """
    rows, row_weights = linear_taps(ids.shape[1], size[0])
    columns, column_weights = linear_taps(ids.shape[2], size[1])
    palette = jnp.broadcast_to(palette, (len(ids), *palette.shape[1:]))
    out = jnp.zeros((len(ids), *size, palette.shape[2]), palette.dtype)
    for i, j in np.ndindex(2, 2):
        # A gather: a product with one-hot ids takes a hundred times as long on a CPU.
        at = ids[:, rows[:, i]][:, :, columns[:, j]].astype(jnp.int32)
        near = jnp.take_along_axis(palette, at.reshape(len(ids), -1, 1), axis=1).reshape(out.shape)
        out += near * (row_weights[:, i, None] * column_weights[:, j])[..., None].astype(palette.dtype)
    return out


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis as PyTorch does it.

    Normalises by the biased variance of the whole (global) batch, but keeps a running mean of the *unbiased* one, and
    counts its updates, so that a checkpoint converts back to the same file.
    """

    train: bool = False
    epsilon: float = layers.EPSILON

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        y, mean, var = x.astype(jnp.float32), running_mean.value, running_var.value
        if self.train:
            axes = tuple(range(x.ndim - 1))
            mean = y.mean(axes)
            var = jnp.square(y - mean).mean(axes)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                running_mean.value += MOMENTUM * (mean - running_mean.value)
                running_var.value += MOMENTUM * (var * (n / max(n - 1, 1)) - running_var.value)
                count.value += 1
        multiplier = jax.lax.rsqrt(var + self.epsilon) * scale
        return ((y - mean) * multiplier + bias).astype(x.dtype)


class Stem(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, then a 1x1 convolution; no biases.

    Takes the map after its resize. Source: NVlabs/prismer, model/modules/vit.py (VisionTransformer.__init__).
    """

    width: int
    strides: tuple[int, ...]
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b gh gw {self.width}"]:
        x = x.astype(self.dtype)
        for i, stride in enumerate(self.strides):
            init = layers.torch_uniform(9 * x.shape[-1])
            features = self.width >> (len(self.strides) - 1 - i)
            options = dict(use_bias=False, dtype=self.dtype, kernel_init=init, name=f"conv_{i}")
            conv = nn.Conv(features, (3, 3), stride, 1, **options)
            x = jax.nn.relu(BatchNorm(self.train, name=f"norm_{i}")(conv(x)))
        init = layers.torch_uniform(x.shape[-1])
        return nn.Conv(self.width, (1, 1), use_bias=False, dtype=self.dtype, kernel_init=init, name="out")(x)


@typed
def add_instances(
    x: Float[Array, "b gh gw d"], ids: UInt8[Array, "b h w"], rows: Int[Array, "#b 256"], embedding: Float[Array, "n d"]
) -> Float[Array, "b gh gw d"]:
    """Adds `embedding[rows[b, id]]` where the instance map, reduced by nearest neighbour, shows that id."""
    (gh, gw), (h, w) = x.shape[1:3], ids.shape[1:]
    ids = ids[:, np.arange(gh) * h // gh][:, :, np.arange(gw) * w // gw]
    rows = jnp.take_along_axis(jnp.broadcast_to(rows, (len(ids), 256)), ids.reshape(len(ids), -1).astype(int), axis=1)
    return x + embedding[rows].reshape(x.shape).astype(x.dtype)
