"""What several experts share: layers in the networks' layouts, and resizing as the reference's libraries do it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from prismer_jax.towers.stem import linear_taps
from prismer_jax.typing import Array, Float, typed


class StandardizedConv(nn.Module):
    """A convolution without bias whose weights have mean 0 and variance 1 for every output channel (arXiv 1903.10520).

    Padding is TensorFlow's "SAME", the larger half at the bottom and right. Source: timm 0.6.13, models/layers/
    std_conv.py (StdConv2dSame), epsilon as models/vision_transformer_hybrid.py sets it.
    """

    features: int
    kernel: int
    stride: int = 1
    epsilon: float = 1e-8

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W {self.features}"]:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) + self.epsilon)
        return jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class GroupNorm(nn.Module):
    """Normalises groups of channels over the whole map in float32, and casts back."""

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = x.astype(jnp.float32)
        mean = self._mean(y)
        multiplier = jax.lax.rsqrt(self._mean(jnp.square(y - mean)) + self.epsilon) * scale
        return ((y - mean) * multiplier + bias).astype(x.dtype)

    def _mean(self, y: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        """Returns for each channel the mean over its group."""
        groups = y.mean((1, 2)).reshape(len(y), self.groups, -1).mean(-1)
        return jnp.repeat(groups, y.shape[-1] // self.groups, axis=-1)[:, None, None]


def resize_photo(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h, w, 3] to (H, W) by Pillow's bilinear filter, antialiased when shrinking.

    It is what torchvision.transforms.Resize does to a PIL image. Proportions are not kept.
    """
    return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_map(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes float32 [h, w, *c] to [H, W, *c] on the host: bilinear with aligned corners, as `models.stem.resize`."""
    for axis, new in enumerate(size):
        if new != x.shape[axis]:
            taps, weights = linear_taps(x.shape[axis], new)
            broad = (-1, *(1,) * (x.ndim - 1 - axis))
            low, high = (np.take(x, taps[:, i], axis) * weights[:, i].reshape(broad) for i in range(2))
            x = low + high
    return x


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Numbers of [0, 1] as 8 bits, cut off as the reference does it, not rounded; what is outside is clipped."""
    return (np.clip(x, 0, 1) * np.float32(255)).astype(np.uint8)
