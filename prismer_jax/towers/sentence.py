"""BERT as an encoder of whole texts: the mean of its last states is what a text is about (arXiv 1908.10084)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.towers.roberta import Layer
from prismer_jax.typing import Array, Bool, Float, Int, typed


class SentenceEncoder(nn.Module):
    """Token ids -> a vector a text. Source: transformers 4.33.2, models/bert/modeling_bert.py (BertModel)."""

    width: int
    layers: int
    heads: int
    mlp_dim: int
    vocab_size: int
    max_positions: int = 512
    token_types: int = 2
    epsilon: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, ids: Int[Array, "b t"], real: Bool[Array, "b t"]) -> Float[Array, "b d"]:
        """Returns the mean of the states of each text's real columns, 0 for a text without any."""
        normal = nn.initializers.normal(0.02)
        words = self.param("word_embedding", normal, (self.vocab_size, self.width))
        places = self.param("position_embedding", normal, (self.max_positions, self.width))
        kinds = self.param("token_type_embedding", normal, (self.token_types, self.width))
        x = words[ids] + kinds[0] + places[: ids.shape[1]]
        x = layers.LayerNorm(self.epsilon, name="norm_embedding")(x.astype(self.dtype))
        stack = layers.stack(Layer, self.layers, "none", broadcast=2, cached=2)
        options = dict(cross=False, collect=False, initializer_range=0.02, dtype=self.dtype, epsilon=self.epsilon)
        blocks = stack(self.heads, self.mlp_dim, 0.0, True, name="layers", **options)
        x, _ = blocks(x[:, None], {}, {}, None, {"new": real[:, None, None]})
        x = jnp.where(real[..., None], x[:, 0].astype(jnp.float32), 0)
        return x.sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1)
