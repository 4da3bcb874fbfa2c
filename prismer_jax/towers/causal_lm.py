"""Decoder-only language models with RMSNorm, rotary positions, grouped keys, gated MLP and tied head.

Llama (SmolLM2), Gemma and Gemma 2 are these with other settings.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.errors import choose
from prismer_jax.towers import layers
from prismer_jax.towers.layers import Keys
from prismer_jax.typing import Array, Bool, Float, Int, typed

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


class RMSNorm(nn.Module):
    """Scales the last axis to a mean square of 1, in float32 whatever the compute type, and casts back.

    The learned factor is `offset` + scale: Gemma's scales are how far it is from 1.
    """

    epsilon: float
    offset: float = 0.0

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), x.shape[-1:])
        y = x.astype(jnp.float32)
        y = (
            y
            * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
            * (self.offset + scale.astype(jnp.float32))
        )
        return y.astype(x.dtype)


def inverse_frequencies(head_dim: int, base: float) -> np.ndarray:
    """Returns float32 [head_dim / 2]: by how much one position turns each pair of channels (arXiv 2104.09864)."""
    return 1.0 / np.float32(base) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))


@typed
def rotary(
    positions: Int[Array, "*b t"], head_dim: int, base: float, max_positions: float
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


def windowed(mask: Bool[Array, "*b t s"], back: Int[Array, "*b t s"], window: int, mutual: bool) -> tuple[Array, Array]:
    """Returns the masks of layers with a window and of those without.

    Args:
      mask: where columns may look.
      back: by how many positions what they look at is before them.
      mutual: t and s are the same columns; those that see each other do so however far they are apart.
    """
    near = back < window
    return mask & (near | mask.swapaxes(-1, -2) if mutual else near), mask


class Settings(NamedTuple):
    """Those fields of CausalLM that its blocks read."""

    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    epsilon: float
    initializer_range: float
    activation: str
    norm_offset: float
    post_norms: bool
    query_scale: float | None
    attention_cap: float
    keys_dtype: str | None
    window: int
    dropout: float
    branch_dropout: float


class Block(nn.Module):
    """Pre-norm block: attention with rotary positions, then a gated MLP; no biases.

    Takes x [b k t d], the layer's part of a cache (`prompt`, keys and values [b s g h] that all k sequences of a row
    read, and `own` [b k room g h]; {} for what there is not), whether its masks are those of the window, cosines and
    sines, and masks of the new columns, of the prompt and of `own`, with a window for each pair of them. Returns x and
    the keys and values of the new columns. Where there is a random stream 'dropout', as there is in training, what
    `model` says drops out.

    Attributes:
      model: whose fields say the rest.
    """

    model: Settings
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        prompt: dict[str, Array],
        own: dict[str, Array],
        near: Array,
        turn: tuple[Array, Array],
        masks: dict[str, Any],
    ) -> tuple[Array, dict[str, Array]]:
        m, width = self.model, x.shape[-1]
        if m.window:
            masks = {name: jnp.where(near, *pair) for name, pair in masks.items()}
        within, branch = (
            functools.partial(nn.Dropout(rate), deterministic=not self.has_rng("dropout"))
            for rate in (m.dropout, m.branch_dropout)
        )
        h = self._norm("norm_attention", x)
        queries = rotate(self._heads("query", m.heads, h), turn)
        if m.query_scale:
            queries = queries * (m.query_scale * m.head_dim**0.5)  # `attend` divides by the root
        keys = {"k": rotate(self._heads("key", m.kv_heads, h), turn), "v": self._heads("value", m.kv_heads, h)}
        if m.keys_dtype:
            keys = jax.tree.map(lambda leaf: leaf.astype(m.keys_dtype), keys)
        parts = [(prompt, "prompt"), (own, "own"), (keys, "new")]
        parts = [Keys(k["k"].astype(x.dtype), k["v"].astype(x.dtype), masks[name]) for k, name in parts if k]
        looked_at = self.is_mutable_collection("intermediates") or (m.dropout and self.has_rng("dropout"))
        seen = (lambda probs: within(self._seen(probs))) if looked_at else None
        mixed = layers.attend(queries, *parts, dropout=seen, cap=m.attention_cap)
        mixed = rearrange(mixed, "... h d -> ... (h d)")
        attention = within(self._dense("out", width)(mixed))
        self.sow("intermediates", "attention_out", attention)
        x = x + branch(self._norm("norm_attention_out", attention) if m.post_norms else attention)
        # Gemma 2's norm has a name of its own, as its files give Llama's name for it to the norm behind attention.
        h = self._norm("norm_mlp_in" if m.post_norms else "norm_mlp", x)
        activation = choose("activation", m.activation, ACTIVATIONS)
        gated = activation(self._dense("gate", m.mlp_dim)(h)) * self._dense("up", m.mlp_dim)(h)
        mlp = branch(self._dense("down", width)(gated))
        x = x + (self._norm("norm_mlp_out", mlp) if m.post_norms else mlp)
        self.sow("intermediates", "after_mlp", x)
        return x, keys

    def _seen(self, probs: Array) -> Array:
        self.sow("intermediates", "weights", probs.mean(-3))  # for decode.attention
        return probs

    def _heads(self, name: str, heads: int, h: Array) -> Array:
        size = self.model.head_dim
        return rearrange(self._dense(name, heads * size)(h), "... (h d) -> ... h d", d=size)

    def _norm(self, name: str, x: Array) -> Array:
        return RMSNorm(self.model.epsilon, self.model.norm_offset, name=name)(x)

    def _dense(self, name: str, width: int) -> layers.Dense:
        init = nn.initializers.normal(self.model.initializer_range)
        return layers.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)


class CausalLM(nn.Module):
    """Embeddings in, hidden states out; `embed` before and `logits` behind it use one table of words.

    Sources: huggingface/nanoVLM, models/language_model.py, and the config.json of HuggingFaceTB/SmolLM2-*;
    google-research/big_vision, models/ppp/gemma.py.

    Attributes:
      kv_heads: heads of keys and values; each serves heads / kv_heads neighbouring heads of queries.
      head_dim: channels of a head; width / heads by default.
      rope_base: of the rotary positions.
      max_positions, stretched: beyond so many positions rotary frequencies are stretched, if at all; see `rotary`.
      activation: of the gate, a name of ACTIVATIONS.
      norm_offset: see RMSNorm.
      word_scale: what embeddings are multiplied by where they are read.
      post_norms: normalise what attention and MLP give before it is added.
      query_scale: what queries are multiplied by; head_dim^-0.5 by default.
      attention_cap: bounds attention's logits, see layers.soft_cap.
      keys_dtype: what keys and values are rounded to, and kept in; 'bfloat16' halves a float32 model's cache.
      logit_cap: bounds the words' logits, where a model asks for it.
      window: how many columns back, its own counted, a column of the layers 0, 2, ... sees where it is not seen in turn
        (Gemma 2, arXiv 2408.00118; transformers, create_sliding_window_causal_mask); 0 for all there are.
      dropout: of training, within attention, as in huggingface/nanoVLM (models/language_model.py).
      branch_dropout: of training, of what attention, behind its norm, and MLP, before its norm, give, as in big_vision.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    vocab_size: int
    head_dim: int | None = None
    max_positions: int = 8192
    stretched: bool = True
    rope_base: float = 100000.0
    epsilon: float = 1e-5
    initializer_range: float = 0.02
    activation: str = "silu"
    norm_offset: float = 0.0
    word_scale: float = 1.0
    post_norms: bool = False
    query_scale: float | None = None
    attention_cap: float = 0.0
    keys_dtype: str | None = None
    logit_cap: float = 0.0
    window: int = 0
    dropout: float = 0.0
    branch_dropout: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.normal(self.initializer_range)
        self.words = self.param("word_embedding", init, (self.vocab_size, self.width))
        self.norm = RMSNorm(self.epsilon, self.norm_offset)
        fields = {field: getattr(self, field) for field in Settings._fields}
        settings = Settings(**fields | {"head_dim": self._head_dim})
        self.blocks = layers.stack(Block, self.layers, self.remat, broadcast=2, cached=3)(settings, dtype=self.dtype)

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.width // self.heads

    def embed(self, ids: Int[Array, "*b t"]) -> Float[Array, "*b t d"]:
        """Returns the words' embeddings, in the compute type."""
        words = self.words[ids].astype(self.dtype)
        return words if self.word_scale == 1 else words * jnp.asarray(self.word_scale, self.dtype)

    @typed
    def __call__(
        self,
        x: Float[Array, "b k t d"],
        positions: Int[Array, "b k t"],
        masks: dict[str, Any],
        cache: dict[str, Any] | None = None,
    ) -> tuple[Float[Array, "b k t d"], dict[str, Array]]:
        """Returns the states after the last norm, and the keys and values of the columns, [layers b k t g h].

        Args:
          masks: where each column may look, of 'new' columns and, with a cache, of its 'prompt' and its 'own' columns;
            each broadcasts to [b k t s]. With a `window` they are pairs, see `windowed`.
          cache: {'shared': {'keys'}, 'own'}, as models.vlm describes it.
        """
        limit = self.max_positions if self.stretched else math.inf
        turn = rotary(positions, self._head_dim, self.rope_base, limit)
        prompt, own = (cache["shared"]["keys"], cache["own"]) if cache else ({}, {})
        near = jnp.arange(self.layers) % 2 == 0
        x, keys = self.blocks(x, prompt, own, near, turn, masks)
        return self.norm(x), keys

    @typed
    def logits(self, hidden: Float[Array, "*b d"], capped: bool = True) -> Float[Array, "*b v"]:
        """Returns float32 scores of all words; within `logit_cap`, unless they are not to be `capped`."""
        words = self.words.astype(self.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, words, preferred_element_type=jnp.float32)
        return layers.soft_cap(logits, self.logit_cap) if capped else logits


class Llama(CausalLM):
    """A Llama as transformers has it, whose rotary frequencies are the same at any length."""

    stretched: bool = False
