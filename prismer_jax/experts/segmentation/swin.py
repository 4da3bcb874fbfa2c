"""Swin Transformer (arXiv 2103.14030): attention within windows, which every second block shifts.

Source of what the paper leaves open: NVlabs/prismer, experts/segmentation/mask2former/modeling/backbone/swin.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.typing import Array, Float, Int, typed
from prismer_jax.weights import modules
from prismer_jax.weights.rules import Rule

PATCH, STAGES = 4, 4
OTHER_REGION = -100.0  # added to the logits of pairs that were no neighbours before the shift

gelu = functools.partial(jax.nn.gelu, approximate=False)


@functools.cache
def relative_position_index(window: int) -> np.ndarray:
    """Returns int64 [w², w²]: the row of the bias table for (query, key), by how far they are apart."""
    at = np.stack(np.indices((window, window))).reshape(2, -1)
    dy, dx = at[:, :, None] - at[:, None, :] + window - 1
    return dy * (2 * window - 1) + dx


def index_of_table(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the `relative_position_index` that belongs to a bias table [(2w - 1)², heads]."""
    return relative_position_index((round(shape[0] ** 0.5) + 1) // 2)


def regions(size: tuple[int, int], window: int, shift: Array) -> Float[Array, "n t t"]:
    """Returns what is added to the logits of every window of a shifted map: 0 within a region of it, else -100.

    The shift brings the first rows and columns to the end, where they share windows with the last ones. Without a
    shift no window holds two regions.
    """
    at = [(np.arange(n) >= n - window) + (np.arange(n) >= n - shift).astype(int) for n in size]
    ids = jnp.asarray(at[0])[:, None] * 3 + jnp.asarray(at[1])
    ids = rearrange(ids, "(i y) (j x) -> (i j) (y x)", y=window, x=window)
    return jnp.where(ids[:, :, None] == ids[:, None, :], 0, OTHER_REGION)


class Block(nn.Module):
    """Attention within windows, then an MLP, each with a norm before and a residual around it."""

    heads: int
    window: int
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"], shift: Int[Array, ""]) -> tuple[Float[Array, "b h w c"], None]:
        """Takes by how many rows and columns the windows are shifted, 0 or window//2: the blocks of a stage differ in
        that alone, and so are compiled once."""
        (height, width, channels), window = x.shape[1:], self.window
        y = nn.Dense(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(
            layers.LayerNorm(name="norm_attention")(x)
        )
        # Maps are padded with zeros to whole windows, and the padding is attended to as any pixel: its queries, keys
        # and values are the bias. So it is added after the padding, and nothing is multiplied with zeros.
        size = tuple(-(-n // window) * window for n in (height, width))
        y = jnp.pad(y, ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0)))
        y = y + self.param("qkv_bias", nn.initializers.zeros, (3 * channels,)).astype(y.dtype)
        y = jnp.roll(y, (-shift, -shift), (1, 2))
        q, k, v = rearrange(y, "b (i y) (j x) (p h d) -> p b (i j) (y x) h d", y=window, x=window, p=3, h=self.heads)
        table = self.param("bias_table", nn.initializers.truncated_normal(0.02), ((2 * window - 1) ** 2, self.heads))
        bias = rearrange(table[relative_position_index(window)], "t s h -> h t s")
        y = layers.attend(q, layers.Keys(k, v), bias=bias + regions(size, window, shift)[:, None])
        y = rearrange(y, "b (i j) (y x) h d -> b (i y) (j x) (h d)", y=window, x=window, i=size[0] // window)
        y = jnp.roll(y, (shift, shift), (1, 2))[:, :height, :width]
        x = x + nn.Dense(channels, dtype=self.dtype, name="out")(y)
        y = layers.LayerNorm(name="norm_mlp")(x)
        return x + layers.MLP(4 * channels, gelu, self.dtype, name="mlp")(y), None


class Merge(nn.Module):
    """Halves the sides and doubles the channels: the channels of 2x2 pixels, normed and projected."""

    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W 2*c"]:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        # Rows before columns: the pixel below comes second.
        x = layers.LayerNorm(name="norm")(rearrange(x, "b (h y) (w x) c -> b h w (x y c)", y=2, x=2))
        return nn.Dense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name="out")(x)


class Swin(nn.Module):
    """The backbone: an image becomes feature maps of strides 4, 8, 16 and 32.

    Attributes:
      width: channels of the first map; every further one has twice as many.
      depths: blocks of each stage.
      heads: of each stage.
      window: side of a window, in pixels of the map. Maps smaller than it are padded to it.
    """

    width: int = 192
    depths: Sequence[int] = (2, 2, 18, 2)
    heads: Sequence[int] = (6, 12, 24, 48)
    window: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, image: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _ _ _"]]:
        """Returns {'res2', 'res3', 'res4', 'res5'}, each with a norm of its own; sides are rounded up."""
        image = jnp.pad(image, ((0, 0), (0, -image.shape[1] % PATCH), (0, -image.shape[2] % PATCH), (0, 0)))
        patches = rearrange(image, "b (h y) (w x) c -> b h w (y x c)", y=PATCH, x=PATCH).astype(self.dtype)
        kernel = self.param("patch_embedding", nn.initializers.lecun_normal(), (PATCH, PATCH, 3, self.width))
        bias = self.param("patch_bias", nn.initializers.zeros, (self.width,))
        x = patches @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype)
        x = layers.LayerNorm(name="norm_patches")(x)
        outputs = {}
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if i > 0:
                x = Merge(self.dtype, name=f"merge_{i - 1}")(x)
            blocks = layers.stack(Block, depth, "none", broadcast=0, cached=1)
            shifts = jnp.arange(depth) % 2 * (self.window // 2)
            x, _ = blocks(heads, self.window, self.dtype, name=f"stage_{i}")(x, shifts)
            outputs[f"res{i + 2}"] = layers.LayerNorm(name=f"norm_{i}")(x)
        return outputs


def _block(key: str, name: str) -> list[Rule]:
    return [
        *modules.norm(f"{key}.norm1", f"{name}/norm_attention"),
        Rule(f"{key}.attn.relative_position_bias_table", (f"params/{name}/bias_table",)),
        Rule(f"{key}.attn.qkv.weight", (f"params/{name}/qkv/kernel",), "dense"),
        Rule(f"{key}.attn.qkv.bias", (f"params/{name}/qkv_bias",)),
        *modules.dense(f"{key}.attn.proj", f"{name}/out"),
        *modules.norm(f"{key}.norm2", f"{name}/norm_mlp"),
        *modules.mlp(f"{key}.mlp.fc1", f"{key}.mlp.fc2", f"{name}/mlp"),
    ]


def rules_of(key: str, name: str) -> list[Rule]:
    """Returns the conversion rules of the Swin under `key` of the state dict and `name` here."""
    all_rules = [
        Rule(f"{key}.patch_embed.proj.weight", (f"params/{name}/patch_embedding",), "conv"),
        Rule(f"{key}.patch_embed.proj.bias", (f"params/{name}/patch_bias",)),
        *modules.norm(f"{key}.patch_embed.norm", f"{name}/norm_patches"),
    ]
    for i in range(STAGES):
        all_rules += _block(f"{key}.layers.{i}.blocks.{{}}", f"{name}/stage_{i}")
        all_rules += modules.norm(f"{key}.norm{i}", f"{name}/norm_{i}")
        if i < STAGES - 1:
            all_rules += modules.norm(f"{key}.layers.{i}.downsample.norm", f"{name}/merge_{i}/norm")
            all_rules.append(
                Rule(f"{key}.layers.{i}.downsample.reduction.weight", (f"params/{name}/merge_{i}/out/kernel",), "dense")
            )
    return all_rules
