"""T5 1.1 and FlanT5: an encoder that reads whole texts, and a decoder that looks at its states and writes.

Positions are distances between columns alone, and a learned number for each range of distances and each head is added
to attention's logits, the same in all layers.

Sources: Raffel et al. (arXiv 1910.10683); Shazeer, gated activations (arXiv 2002.05202); transformers 4.33.2,
models/t5/modeling_t5.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.errors import choose
from prismer_jax.towers import layers
from prismer_jax.towers.causal_lm import RMSNorm
from prismer_jax.towers.layers import Keys
from prismer_jax.typing import Array, Bool, Float, Int, typed

# FlanT5's own configuration says 'gelu_tanh', by its older name gelu_new; BLIP-2 was trained with 'gelu' in its place.
ACTIVATIONS = {"gelu": layers.gelu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


@functools.cache
def bucket_table(both_sides: bool, buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """Returns int32 [2 * max_distance + 1], the buckets of the distances from -max_distance on.

    A distance is a key's column less a query's. Half of the buckets of a side are for one distance each, the others for
    ranges that grow exponentially up to max_distance. With `both_sides` half of all are for keys that follow; without,
    these count as distance 0.
    """
    distances = np.arange(-max_distance, max_distance + 1)
    side, offset = buckets, np.zeros_like(distances)
    if both_sides:
        side, offset = buckets // 2, (distances > 0) * (buckets // 2)
    back = np.abs(distances) if both_sides else np.maximum(-distances, 0)
    exact = side // 2
    octaves = np.log(np.maximum(back, exact).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    far = np.minimum(exact + (octaves * (side - exact)).astype(np.int32), side - 1)
    return (offset + np.where(back < exact, back, far)).astype(np.int32)


class Settings(NamedTuple):
    """Those fields of T5 that its blocks read."""

    heads: int
    head_dim: int
    mlp_dim: int
    epsilon: float
    activation: str
    dropout: float


class Block(nn.Module):
    """Pre-norm block: attention, [cross-attention,] gated MLP; no biases of layers, and no scale of logits.

    Takes x [b k t d], the layer's part of a cache (`shared`: 'start' and 'encoded', keys and values [b s h c]; `own`:
    [b k room h c]; {} for what there is not), the encoder's states [b s d] where 'encoded' is to be computed, masks of
    the new columns, of the start, of `own` and of the encoder's columns, and what is added to the logits of the first
    three. Returns x and the keys and values of the new columns and of the encoder's.
    """

    model: Settings
    cross: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        shared: dict[str, Any],
        own: dict[str, Array],
        encoded: Array | None,
        masks: Mapping[str, Array],
        bias: Array,
    ) -> tuple[Array, dict[str, Any] | None]:
        m, width = self.model, x.shape[-1]
        drop = functools.partial(nn.Dropout(m.dropout), deterministic=not self.has_rng("dropout"))
        h = RMSNorm(m.epsilon, name="norm_self")(x)
        new = {"k": self._heads("self_key", h), "v": self._heads("self_value", h)}
        parts = [(shared.get("start"), "start"), (own, "own"), (new, "new")]
        parts = [Keys(k["k"], k["v"], masks[name]) for k, name in parts if k]
        x = x + drop(self._attend("self", width, h, parts, drop, bias))
        keys = {"new": new}
        if self.cross:
            h = RMSNorm(m.epsilon, name="norm_cross")(x)
            keys["encoded"] = shared.get("encoded") or {
                "k": self._heads("cross_key", encoded),
                "v": self._heads("cross_value", encoded),
            }
            part = Keys(keys["encoded"]["k"], keys["encoded"]["v"], masks["encoded"])
            x = x + drop(self._attend("cross", width, h, [part], drop))
        h = RMSNorm(m.epsilon, name="norm_mlp")(x)
        activation = choose("activation", m.activation, ACTIVATIONS)
        gated = activation(self._dense("gate", m.mlp_dim, h.shape[-1])(h)) * self._dense("up", m.mlp_dim, h.shape[-1])(
            h
        )
        x = x + drop(self._dense("down", width, m.mlp_dim)(drop(gated)))
        return x, keys if self.cross else None

    def _attend(
        self, name: str, width: int, h: Array, parts: Sequence[Keys], drop: Any, bias: Array | None = None
    ) -> Array:
        m = self.model
        queries = self._heads(f"{name}_query", h) * m.head_dim**0.5  # `attend` divides by the root
        mixed = layers.attend(queries, *parts, dropout=drop, bias=bias)
        return self._dense(f"{name}_out", width, m.heads * m.head_dim)(rearrange(mixed, "... h c -> ... (h c)"))

    def _heads(self, name: str, h: Array) -> Array:
        m = self.model
        fan = h.shape[-1] * (m.head_dim if name.endswith("query") else 1)
        return rearrange(self._dense(name, m.heads * m.head_dim, fan)(h), "... (h c) -> ... h c", c=m.head_dim)

    def _dense(self, name: str, width: int, fan: int) -> layers.Dense:
        init = nn.initializers.normal(fan**-0.5)
        return layers.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)


class T5(nn.Module):
    """Embeddings or ids in, logits of words out; `embed` and the head have a table each.

    Attributes:
      head_dim: channels of a head; heads of them may be more or less than the width.
      activation: of the gate, a name of ACTIVATIONS.
      buckets, max_distance: of positions, see `bucket_table`.
      dropout: of training, where there is a random stream 'dropout'; 0.1 in the reference.
    """

    width: int
    layers: int
    decoder_layers: int
    heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    activation: str = "gelu"
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    dropout: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        normal = nn.initializers.normal
        self.drop = nn.Dropout(self.dropout)
        self.words = self.param("word_embedding", normal(1.0), (self.vocab_size, self.width))
        table = functools.partial(self.param, init_fn=normal(self.width**-0.5), shape=(self.buckets, self.heads))
        self.encoder_bias, self.decoder_bias = table("encoder_bias"), table("decoder_bias")
        settings = Settings(**{field: getattr(self, field) for field in Settings._fields})
        stack = functools.partial(layers.stack, Block, remat=self.remat, broadcast=3, cached=2)
        self.encoder = stack(self.layers)(settings, cross=False, dtype=self.dtype)
        self.decoder = stack(self.decoder_layers)(settings, cross=True, dtype=self.dtype)
        self.encoder_norm, self.decoder_norm = RMSNorm(self.epsilon), RMSNorm(self.epsilon)
        product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        options = dict(use_bias=False, dtype=self.dtype, dot_general=product, kernel_init=normal(1.0))
        self.head = nn.Dense(self.vocab_size, **options)

    @typed
    def embed(self, ids: Int[Array, "*b t"]) -> Float[Array, "*b t d"]:
        """Returns the words' embeddings, in the compute type."""
        return self.words[ids].astype(self.dtype)

    @typed
    def encode(
        self, x: Float[Array, "b s d"], real: Bool[Array, "b s"], positions: Int[Array, "b s"] | None = None
    ) -> Float[Array, "b s d"]:
        """Returns the encoder's states.

        Args:
          real: columns that others may look at.
          positions: of the columns, by default their numbers; what counts is how far they are from each other.
        """
        positions = jnp.arange(x.shape[1]) if positions is None else positions[:, None]
        bias = self._bias(self.encoder_bias, True, positions, positions)
        x, _ = self.encoder(self._dropped(x)[:, None], {}, {}, None, {"new": real[:, None, None]}, bias)
        return self._dropped(self.encoder_norm(x))[:, 0]

    @typed
    def decode(
        self,
        ids: Int[Array, "b k t"],
        masks: dict[str, Any],
        positions: dict[str, Any],
        states: Float[Array, "b s d"] | None = None,
        cache: dict[str, Any] | None = None,
    ) -> tuple[Float[Array, "b k t d"], dict[str, Any]]:
        """Returns the decoder's states, and keys and values of the new columns and of the encoder's.

        Args:
          masks: where each column may look, of the 'encoded' and the 'new' columns and, with a cache, of its 'start'
            and its 'own' columns; each broadcasts to [b k t s].
          positions: numbers of the 'new' columns, of the 'start' and of the 'own' ones, each broadcasts to [b k s].
          states: of the encoder, where there is no cache.
          cache: {'shared': {'keys': {'start', 'encoded'}}, 'own'}.
        """
        shared, own = (cache["shared"]["keys"], cache["own"]) if cache else ({}, {})
        places = [positions[part] for part in ("start", "own", "new") if part in masks]
        leading = jnp.broadcast_shapes(*(place.shape[:-1] for place in places))
        seen = jnp.concatenate([jnp.broadcast_to(x, (*leading, x.shape[-1])) for x in places], axis=-1)
        bias = self._bias(self.decoder_bias, False, positions["new"], seen)
        x, keys = self.decoder(self._dropped(self.embed(ids)), shared, own, states, masks, bias)
        return self._dropped(self.decoder_norm(x)), keys

    @typed
    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Returns float32 scores of all words."""
        return self.head(hidden)

    @typed
    def prefill(
        self, states: Float[Array, "b s d"], real: Bool[Array, "b s"], start: int, room: int
    ) -> tuple[Float[Array, "b 1 v"], dict[str, Any]]:
        """Reads the token that every text starts with. Returns the logits behind it, and a cache as models.vlm has it.

        What the decoder reads of the encoder, and the start, are `shared` by all sequences of a row.
        """
        ids = jnp.full((len(states), 1, 1), start)
        masks = {"encoded": real[:, None, None], "new": jnp.ones((1, 1), bool)}
        hidden, keys = self.decode(ids, masks, {"new": jnp.zeros(1, jnp.int32)}, states)
        new = keys["new"]
        own = layers.unfilled(new, room)
        shared = {"keys": {"start": jax.tree.map(lambda x: x[:, :, 0], new), "encoded": keys["encoded"]}, "real": real}
        return self.logits(hidden[:, 0]), {"shared": shared, "own": own, "rows": {}, "index": jnp.zeros((), jnp.int32)}

    @typed
    def extend(
        self, cache: dict[str, Any], tokens: Int[Array, "b k t"], seen: Bool[Array, "b k t t"] | None = None
    ) -> tuple[Float[Array, "b k t v"], dict[str, Any]]:
        """Appends tokens to every sequence. Returns the logits after each of them and the cache with their columns.

        `seen` makes them a tree, see models.vlm.
        """
        index, length, room = cache["index"], tokens.shape[2], cache["own"]["k"].shape[3]
        masks = {
            "encoded": cache["shared"]["real"][:, None, None],
            "start": jnp.ones((length, 1), bool),
            "own": jnp.broadcast_to(jnp.arange(room) < index, (length, room)),
            "new": jnp.tri(length, dtype=bool) if seen is None else seen,
        }
        positions = {
            "start": jnp.zeros(1, jnp.int32),
            "own": 1 + jnp.arange(room),
            "new": index + masks["new"].sum(-1, dtype=jnp.int32),
        }
        hidden, keys = self.decode(tokens, masks, positions, cache=cache)
        if seen is not None:
            return self.logits(hidden), cache
        own = layers.appended(cache["own"], keys["new"], index)
        return self.logits(hidden), {**cache, "own": own, "index": index + length}

    def _dropped(self, x: Array) -> Array:
        return self.drop(x, deterministic=not self.has_rng("dropout"))

    def _bias(self, table: Array, both_sides: bool, queries: Array, keys: Array) -> Array:
        """Returns what is added to the logits [*n h t s] of columns at these positions [*n t] and [*n s]."""
        distances = keys[..., None, :] - queries[..., :, None]
        buckets = jnp.asarray(bucket_table(both_sides, self.buckets, self.max_distance))
        bucket = buckets[jnp.clip(distances, -self.max_distance, self.max_distance) + self.max_distance]
        return jnp.moveaxis(table[bucket], -1, -3)
