"""Mask2Former's pixel decoder (arXiv 2112.01527): a deformable-attention encoder over three maps, then one FPN level.

Source of what the paper leaves open: NVlabs/prismer, experts/segmentation/mask2former/modeling/pixel_decoder/
msdeformattn.py. It computes in float32 throughout, as the reference does even in half precision.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts.segmentation.deformable_attention import DeformableAttention, Sizes
from prismer_jax.experts.winograd import Conv
from prismer_jax.towers import layers
from prismer_jax.typing import Array, Float, typed
from prismer_jax.weights import modules
from prismer_jax.weights.rules import Rule

LEVELS = ("res5", "res4", "res3")  # that attend to each other, coarsest first
GROUPS = 32  # of every group norm
TEMPERATURE, POSITION_EPSILON = 10000, 1e-6

group_norm = functools.partial(nn.GroupNorm, GROUPS, epsilon=layers.EPSILON, use_fast_variance=False)


@functools.cache
def sine_positions(height: int, width: int, channels: int) -> np.ndarray:
    """Returns float32 [height, width, channels]: sines and cosines in turn, of the row in the first half, then of the
    column, both counted from 1 and scaled so that the last is at 2π (DETR, arXiv 2005.12872)."""
    half = channels // 2
    frequencies = TEMPERATURE ** -(2 * (np.arange(half) // 2) / half)

    def encode(n: int) -> np.ndarray:
        angles = (np.arange(1, n + 1) / (n + POSITION_EPSILON) * 2 * np.pi)[:, None] * frequencies
        return np.where(np.arange(half) % 2, np.cos(angles), np.sin(angles))

    parts = (encode(height)[:, None], encode(width)[None])
    parts = [np.broadcast_to(part, (height, width, half)) for part in parts]
    return np.concatenate(parts, -1).astype(np.float32)


@typed
def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b H W c"]:
    """Resizes bilinearly with half-pixel centres and clamped borders, not antialiased when shrinking."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "linear", antialias=False)


class EncoderLayer(nn.Module):
    """Deformable attention and an MLP, each followed by a residual and a norm."""

    sizes: Sizes
    heads: int
    points: int
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b s c"], positions: Array, references: Array) -> tuple[Array, None]:
        attention = DeformableAttention(self.sizes, self.heads, self.points, name="attention")
        x = layers.LayerNorm(name="norm_attention")(x + attention(x + positions, x, references))
        return layers.LayerNorm(name="norm_mlp")(x + layers.MLP(self.hidden, jax.nn.relu, name="mlp")(x)), None


class PixelDecoder(nn.Module):
    """Mixes the backbone's maps of strides 8 to 32, and makes one of stride 4 for the masks.

    Attributes:
      width: channels of the maps within.
      mask_width: channels of the map for the masks.
      depth: layers of the encoder.
      heads: of its attention.
      points: that a head reads of each map.
      hidden: of its MLPs.
    """

    width: int = 256
    mask_width: int = 256
    depth: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024

    @nn.compact
    @typed
    def __call__(
        self, features: Mapping[str, Float[Array, "b _ _ _"]]
    ) -> tuple[Float[Array, "b h w {self.mask_width}"], list[Float[Array, "b _ _ {self.width}"]]]:
        """Returns the map for the masks, of stride 4, and those of strides 32, 16 and 8."""
        maps = [features[level].astype(jnp.float32) for level in LEVELS]
        sizes = tuple(x.shape[1:3] for x in maps)
        maps = [nn.Conv(self.width, (1, 1), name=f"project_{i}")(x) for i, x in enumerate(maps)]
        maps = [group_norm(name=f"norm_{i}")(x) for i, x in enumerate(maps)]
        level_embedding = self.param("level_embedding", nn.initializers.normal(1.0), (len(LEVELS), self.width))
        positions = [sine_positions(*size, self.width) + level_embedding[i] for i, size in enumerate(sizes)]
        centres = [np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in (w, h))), -1) for h, w in sizes]

        x = jnp.concatenate([rearrange(m, "b h w c -> b (h w) c") for m in maps], 1)
        positions = jnp.concatenate([p.reshape(-1, self.width) for p in positions])
        references = np.concatenate([c.reshape(-1, 2) for c in centres]).astype(np.float32)
        encoder = layers.stack(EncoderLayer, self.depth, "none", broadcast=2)
        encoder = encoder(sizes, self.heads, self.points, self.hidden, name="layers")
        x, _ = encoder(x, positions, jnp.asarray(references))
        ends = np.cumsum([h * w for h, w in sizes])[:-1]
        maps = [m.reshape(len(m), *size, self.width) for m, size in zip(jnp.split(x, ends, 1), sizes, strict=True)]

        finest = features["res2"].astype(jnp.float32)
        finest = group_norm(name="norm_lateral")(nn.Conv(self.width, (1, 1), use_bias=False, name="lateral")(finest))
        finest = finest + resize(maps[-1], finest.shape[1:3])
        finest = Conv(self.width, (3, 3), use_bias=False, name="fpn")(finest)
        finest = jax.nn.relu(group_norm(name="norm_fpn")(finest))
        return nn.Conv(self.mask_width, (1, 1), name="mask_features")(finest), maps


def rules_of(key: str, name: str) -> list[Rule]:
    """Returns the conversion rules of the pixel decoder under `key` of the state dict and `name` here."""
    layer, layer_name = f"{key}.transformer.encoder.layers.{{}}", f"{name}/layers"
    projections = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value"}
    projections["output_proj"] = "out"
    all_rules = [Rule(f"{key}.transformer.level_embed", (f"params/{name}/level_embedding",))]
    for i in range(len(LEVELS)):
        all_rules += modules.conv(f"{key}.input_proj.{i}.0", f"{name}/project_{i}")
        all_rules += modules.norm(f"{key}.input_proj.{i}.1", f"{name}/norm_{i}")
    for theirs, ours in projections.items():
        all_rules += modules.dense(f"{layer}.self_attn.{theirs}", f"{layer_name}/attention/{ours}")
    all_rules += modules.norm(f"{layer}.norm1", f"{layer_name}/norm_attention")
    all_rules += modules.mlp(f"{layer}.linear1", f"{layer}.linear2", f"{layer_name}/mlp")
    all_rules += modules.norm(f"{layer}.norm2", f"{layer_name}/norm_mlp")
    for theirs, ours in {"adapter_1": "lateral", "layer_1": "fpn"}.items():
        all_rules += modules.conv(f"{key}.{theirs}", f"{name}/{ours}", bias=False)
        all_rules += modules.norm(f"{key}.{theirs}.norm", f"{name}/norm_{ours}")
    return [*all_rules, *modules.conv(f"{key}.mask_features", f"{name}/mask_features")]
