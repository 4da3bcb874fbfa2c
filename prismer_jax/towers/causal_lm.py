"""Decoder-only language models of Llama's kind: RMSNorm, rotary positions, grouped keys, gated MLP, tied head."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.towers.layers import Keys
from prismer_jax.typing import Array, Bool, Float, Int, typed


class RMSNorm(nn.Module):
    """Scales the last axis to a mean square of 1, in float32 whatever the compute type, and casts back."""

    epsilon: float

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon) * scale).astype(x.dtype)


def inverse_frequencies(head_dim: int, base: float) -> np.ndarray:
    """Returns float32 [head_dim / 2]: by how much one position turns each pair of channels (arXiv 2104.09864)."""
    return 1.0 / np.float32(base) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))


@typed
def rotary(
    positions: Int[Array, "*b t"], head_dim: int, base: float, max_positions: int
) -> tuple[Float[Array, "*b t d"], Float[Array, "*b t d"]]:
    """Returns the cosines and sines that turn queries and keys at these positions, float32.

    Where a row's last position is beyond `max_positions` its frequencies are divided by how many times it is, as in
    huggingface/nanoVLM (models/language_model.py); keys of an earlier call keep theirs.
    """
    stretch = jnp.maximum(1.0, (positions.max(-1, keepdims=True) + 1) / max_positions)[..., None]
    angles = positions[..., None] * (inverse_frequencies(head_dim, base) / stretch)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "*b t h d"], turn: tuple[Array, Array]) -> Float[Array, "*b t h d"]:
    """Turns channel i with channel i + d/2, as Hugging Face's Llama does (GGUF files hold neighbours together)."""
    cos, sin = (part[..., None, :] for part in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return (jnp.concatenate([first, second], -1) * cos + jnp.concatenate([-second, first], -1) * sin).astype(x.dtype)


class Block(nn.Module):
    """Pre-norm block: attention with rotary positions, then a gated MLP; no biases.

    Takes x [b k t d], the layer's part of a cache (`prompt`, keys and values [b s g h] that all k sequences of a row
    read, and `own` [b k room g h]; {} for what there is not), cosines and sines, and masks of the new columns, of the
    prompt and of `own`. Returns x and the keys and values of the new columns. Attention's weights and output drop out
    where there is a random stream 'dropout', as there is in training.
    """

    heads: int
    kv_heads: int
    mlp_dim: int
    epsilon: float
    initializer_range: float
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        prompt: dict[str, Array],
        own: dict[str, Array],
        turn: tuple[Array, Array],
        masks: dict[str, Array],
    ) -> tuple[Array, dict[str, Array]]:
        width = x.shape[-1]
        size = width // self.heads
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not self.has_rng("dropout"))
        h = RMSNorm(self.epsilon, name="norm_attention")(x)
        project = lambda name, heads: rearrange(self._dense(name, heads * size)(h), "... (h d) -> ... h d", d=size)  # noqa: E731
        queries, keys = rotate(project("query", self.heads), turn), rotate(project("key", self.kv_heads), turn)
        new = Keys(keys, project("value", self.kv_heads), masks["new"])
        parts = [Keys(**prompt, mask=masks["prompt"])] if prompt else []
        parts += [Keys(**own, mask=masks["own"])] if own else []
        mixed = rearrange(layers.attend(queries, *parts, new, dropout=drop), "... h d -> ... (h d)")
        attention = drop(self._dense("out", width)(mixed))
        self.sow("intermediates", "attention_out", attention)
        x = x + attention
        h = RMSNorm(self.epsilon, name="norm_mlp")(x)
        gated = jax.nn.silu(self._dense("gate", self.mlp_dim)(h)) * self._dense("up", self.mlp_dim)(h)
        x = x + self._dense("down", width)(gated)
        self.sow("intermediates", "after_mlp", x)
        return x, {"k": new.k, "v": new.v}

    def _dense(self, name: str, width: int) -> nn.Dense:
        init = nn.initializers.normal(self.initializer_range)
        return nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)


class CausalLM(nn.Module):
    """Embeddings in, hidden states out; `embed` before and `logits` behind it use one table of words.

    Source: huggingface/nanoVLM, models/language_model.py, and the config.json of HuggingFaceTB/SmolLM2-*.

    Attributes:
      kv_heads: heads of keys and values; each serves heads / kv_heads neighbouring heads of queries.
      rope_base: of the rotary positions.
      max_positions: beyond it the rotary frequencies are stretched, see `rotary`.
      dropout: of training, within attention, as in huggingface/nanoVLM (models/language_model.py).
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    vocab_size: int
    max_positions: int = 8192
    rope_base: float = 100000.0
    epsilon: float = 1e-5
    initializer_range: float = 0.02
    dropout: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.normal(self.initializer_range)
        self.words = self.param("word_embedding", init, (self.vocab_size, self.width))
        self.norm = RMSNorm(self.epsilon)
        options = (self.heads, self.kv_heads, self.mlp_dim, self.epsilon, self.initializer_range, self.dropout)
        self.blocks = layers.stack(Block, self.layers, self.remat, broadcast=2, cached=2)(*options, dtype=self.dtype)

    def embed(self, ids: Int[Array, "*b t"]) -> Float[Array, "*b t d"]:
        """Returns the words' embeddings, in the compute type."""
        return self.words[ids].astype(self.dtype)

    @typed
    def __call__(
        self,
        x: Float[Array, "b k t d"],
        positions: Int[Array, "b k t"],
        masks: dict[str, Bool[Array, ...]],
        cache: dict[str, Any] | None = None,
    ) -> tuple[Float[Array, "b k t d"], dict[str, Array]]:
        """Returns the states after the last norm, and the keys and values of the columns, [layers b k t g h].

        Args:
          masks: where each column may look, of 'new' columns and, with a cache, of its 'prompt' and its 'own' columns;
            each broadcasts to [b k t s].
          cache: {'shared': {'keys'}, 'own'}, as models.vlm describes it.
        """
        turn = rotary(positions, self.width // self.heads, self.rope_base, self.max_positions)
        prompt, own = (cache["shared"]["keys"], cache["own"]) if cache else ({}, {})
        x, keys = self.blocks(x, prompt, own, turn, masks)
        return self.norm(x), keys

    @typed
    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Returns float32 scores of all words."""
        return jnp.einsum("...d,vd->...v", hidden, self.words.astype(self.dtype), preferred_element_type=jnp.float32)
