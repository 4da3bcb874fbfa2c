"""Mask2Former's transformer decoder (arXiv 2112.01527): queries become masks with classes.

A query attends only to where its mask, as predicted so far, lies; the levels take turns. Source of what the paper
leaves open: NVlabs/prismer, experts/segmentation/mask2former/modeling/transformer_decoder/
mask2former_transformer_decoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts.segmentation.pixel_decoder import resize, sine_positions
from prismer_jax.towers import layers
from prismer_jax.typing import Array, Bool, Float, typed
from prismer_jax.weights import modules
from prismer_jax.weights.rules import Rule


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and an MLP, each followed by a residual and a norm."""

    heads: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self,
        x: Float[Array, "b q c"],
        query_positions: Float[Array, "q c"],
        memory: Float[Array, "b s c"],
        positions: Float[Array, "s c"],
        mask: Bool[Array, "b q s"],
    ) -> Float[Array, "b q c"]:
        """Takes what is attended to, its positions, and where each query may look (True)."""
        cross, self_attention = (
            layers.Attention(x.shape[-1], self.heads, dtype=self.dtype, name=name) for name in ("cross", "self")
        )
        y = cross(x + query_positions, cross.keys(memory, positions, mask))
        x = layers.LayerNorm(name="norm_cross")(x + y)
        y = self_attention(x + query_positions, self_attention.keys(x, query_positions))
        x = layers.LayerNorm(name="norm_self")(x + y)
        y = layers.MLP(self.hidden, jax.nn.relu, self.dtype, name="mlp")(x)
        return layers.LayerNorm(name="norm_mlp")(x + y)


class MaskDecoder(nn.Module):
    """The decoder and its prediction heads.

    Attributes:
      classes: without "no object", which is the last of the logits.
      width: channels within, those of the maps.
      queries: how many.
      depth: layers.
      heads: of the attention.
      hidden: of the MLPs.
    """

    classes: int
    width: int = 256
    queries: int = 200
    depth: int = 9
    heads: int = 8
    hidden: int = 2048
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self, mask_features: Float[Array, "b h w m"], maps: Sequence[Float[Array, "b _ _ {self.width}"]]
    ) -> tuple[Float[Array, "b {self.queries} {self.classes}+1"], Float[Array, "b h w {self.queries}"]]:
        """Returns logits of the classes, and of the masks at the resolution of `mask_features`."""
        table = nn.initializers.normal(1.0)
        query_positions = self.param("query_positions", table, (self.queries, self.width)).astype(self.dtype)
        x = self.param("queries", table, (self.queries, self.width)).astype(self.dtype)
        x = jnp.broadcast_to(x, (len(mask_features), *x.shape))
        level_embedding = self.param("level_embedding", table, (len(maps), self.width))
        sizes = [m.shape[1:3] for m in maps]
        positions = [sine_positions(*size, self.width).reshape(-1, self.width) for size in sizes]
        positions = [jnp.asarray(p, self.dtype) for p in positions]
        maps = [rearrange(m, "b h w c -> b (h w) c") + level_embedding[i] for i, m in enumerate(maps)]
        # A layer needs the masks only as small as its level. To shrink them is to shrink what they are a product of.
        small = [rearrange(resize(mask_features, size), "b h w m -> b (h w) m") for size in sizes]

        norm = layers.LayerNorm(name="norm")
        class_head = nn.Dense(self.classes + 1, dtype=self.dtype, name="class_head")
        widths = (self.width, self.width, mask_features.shape[-1])
        mask_head = [nn.Dense(width, dtype=self.dtype, name=f"mask_head_{i}") for i, width in enumerate(widths)]

        def predict(x: Array) -> tuple[Array, Array]:
            y = x = norm(x)
            for i, dense in enumerate(mask_head):
                y = dense(y if i == 0 else jax.nn.relu(y))
            logits = class_head(x).astype(jnp.float32)
            self.sow("intermediates", "logits", logits)
            return logits, y.astype(jnp.float32)

        for i in range(self.depth):
            level = i % len(maps)
            _, embedding = predict(x)
            # The sign of the logit decides, as precisely as can be.
            blocked = jnp.einsum("bqm,bsm->bqs", embedding, small[level]) < 0
            self.sow("intermediates", "blocked", blocked)
            mask = ~blocked | blocked.all(-1, keepdims=True)  # a query whose mask is empty looks everywhere
            layer = DecoderLayer(self.heads, self.hidden, self.dtype, name=f"layer_{i}")
            x = layer(x, query_positions, maps[level].astype(self.dtype), positions[level], mask)
        logits, embedding = predict(x)
        return logits, jnp.einsum("bhwm,bqm->bhwq", mask_features, embedding)


def rules_of(key: str, name: str, depth: int = 9) -> list[Rule]:
    """Returns the conversion rules of the decoder under `key` of the state dict and `name` here."""
    all_rules = [
        Rule(f"{key}.query_feat.weight", (f"params/{name}/queries",)),
        Rule(f"{key}.query_embed.weight", (f"params/{name}/query_positions",)),
        Rule(f"{key}.level_embed.weight", (f"params/{name}/level_embedding",)),
        *modules.norm(f"{key}.decoder_norm", f"{name}/norm"),
        *modules.dense(f"{key}.class_embed", f"{name}/class_head"),
    ]
    for i in range(3):
        all_rules += modules.dense(f"{key}.mask_embed.layers.{i}", f"{name}/mask_head_{i}")
    for i in range(depth):
        cross, own, mlp = (
            f"{key}.transformer_{part}_layers.{i}" for part in ("cross_attention", "self_attention", "ffn")
        )
        layer = f"{name}/layer_{i}"
        all_rules += modules.packed_attention(f"{cross}.multihead_attn", f"{layer}/cross")
        all_rules += modules.norm(f"{cross}.norm", f"{layer}/norm_cross")
        all_rules += modules.packed_attention(f"{own}.self_attn", f"{layer}/self")
        all_rules += modules.norm(f"{own}.norm", f"{layer}/norm_self")
        all_rules += modules.mlp(f"{mlp}.linear1", f"{mlp}.linear2", f"{layer}/mlp")
        all_rules += modules.norm(f"{mlp}.norm", f"{layer}/norm_mlp")
    return all_rules
