"""Q-Former: a BERT whose learned queries look at an image in every second layer, and which reads texts beside them.

Queries and texts share self-attention; each has a feed-forward network of its own, and only queries look at the image.
Which of them a pass has, and what they see of each other, makes its modes (arXiv 2301.12597, figure 2): queries alone;
a text alone, read from both sides; both, each seeing the other; a text alone again, written from left to right, which
sees the queries' keys and values of an earlier pass.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.towers.layers import Keys
from prismer_jax.typing import Array, Float, Int, typed

Parts = Mapping[str, Array]  # 'query' [b k q d], 'text' [b k t d], or both


class Layer(nn.Module):
    """Post-norm layer: self-attention over all parts, cross-attention of the queries, a feed-forward network a part.

    Takes the parts; what they see beside themselves, `past` (keys and values of 'query' and 'prompt' [b s h d] that all
    k sequences of a row read, of their 'own' columns [b k room h d], and of the 'image' [b n h d], each where there is
    one); the image's tokens [b n c] where its keys are to be computed; masks of 'text', 'prompt' and 'own' columns.
    Returns the parts, and the keys and values of each and of the image.
    """

    heads: int
    mlp_dim: int
    cross: bool
    dropout: float
    epsilon: float
    initializer_range: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Parts, past: Mapping[str, Any], image: Array | None, masks: Mapping[str, Any]
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        attention = self._attention("self", x)
        new = {name: attention.keys(part, mask=masks.get(name)) for name, part in x.items()}
        seen = [Keys(**keys, mask=masks.get(name)) for name, keys in past.items() if name != "image"]
        norm = self._norm("norm_self")
        x = {name: norm(self._drop(attention(part, *seen, *new.values())) + part) for name, part in x.items()}
        keys = {name: {"k": part.k, "v": part.v} for name, part in new.items()}
        if self.cross and "query" in x:
            attention = self._attention("cross", x)
            cross = attention.keys(image) if image is not None else Keys(**past["image"])
            keys["image"] = {"k": cross.k, "v": cross.v}
            x["query"] = self._norm("norm_cross")(self._drop(attention(x["query"], cross)) + x["query"])
            self.sow("intermediates", "after_cross", x["query"])
        for name, ending in (("query", "_query"), ("text", "")):
            if name in x:
                added = self._drop(self._mlp(f"mlp{ending}")(x[name]))
                x[name] = self._norm(f"norm_mlp{ending}")(added + x[name])
                self.sow("intermediates", f"after_{name}", x[name])
        return x, keys

    def _attention(self, name: str, x: Parts) -> layers.Attention:
        normal, (part, *_) = nn.initializers.normal(self.initializer_range), x.values()
        options = dict(dtype=self.dtype, kernel_init=normal, out_init=normal, name=f"{name}_attention")
        return layers.Attention(part.shape[-1], self.heads, self.dropout, not self.has_rng("dropout"), **options)

    def _mlp(self, name: str) -> layers.MLP:
        normal = nn.initializers.normal(self.initializer_range)
        return layers.MLP(self.mlp_dim, layers.gelu, self.dtype, normal, nn.initializers.zeros, name=name)

    def _norm(self, name: str) -> layers.LayerNorm:
        return layers.LayerNorm(self.epsilon, name=name)

    def _drop(self, x: Array) -> Array:
        return nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)


class Group(nn.Module):
    """`count` layers, of which the first looks at the image: what is scanned. `past` and keys have a layer's number."""

    count: int
    options: tuple[Any, ...]

    @nn.compact
    def __call__(
        self, x: Parts, past: Mapping[str, Any], image: Array | None, masks: Mapping[str, Any]
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        keys, (heads, mlp_dim, *rest) = {}, self.options
        for number in range(self.count):
            layer = Layer(heads, mlp_dim, number == 0, *rest, name=f"layer_{number}")
            x, keys[f"layer_{number}"] = layer(x, past.get(f"layer_{number}", {}), image, masks)
        return x, keys


class QFormer(nn.Module):
    """Embedded queries and texts in, their states out. Source: salesforce/LAVIS, models/blip2_models/Qformer.py.

    Attributes:
      queries: number of learned queries.
      cross_every: of so many layers the first looks at the image.
      vocab_size: ids of texts; 0 for one that reads none, as behind a language model of its own.
      max_positions: of texts; queries have no positions.
      pad: the id whose lookup passes no gradient.
      initializer_range: standard deviation of fresh kernels and tables; None: BERT's 0.02 at its width of 768, and as
        1/√width at others. At 0.02 a narrow one hardly mixes what it attends to, and never learns to match.
      dropout: of embeddings, attention and branches where there is a random stream 'dropout', as in training.
    """

    width: int
    layers: int
    heads: int
    mlp_dim: int
    queries: int
    cross_every: int = 2
    vocab_size: int = 0
    max_positions: int = 512
    pad: int = 0
    dropout: float = 0.1
    epsilon: float = 1e-12
    initializer_range: float | None = None
    remat: str = "none"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        deviation = self.initializer_range or 0.02 * (768 / self.width) ** 0.5
        normal = nn.initializers.normal(deviation)
        self.query_tokens = self.param("query_tokens", normal, (self.queries, self.width))
        self.norm_embedding, self.drop = layers.LayerNorm(self.epsilon), nn.Dropout(self.dropout)
        options = (self.heads, self.mlp_dim, self.dropout, self.epsilon, deviation, self.dtype)
        groups = self.layers // self.cross_every
        self.blocks = layers.stack(Group, groups, self.remat, broadcast=2, cached=1)(self.cross_every, options)
        if self.vocab_size:
            self.words = self.param("word_embedding", layers.zero_row(normal, self.pad), (self.vocab_size, self.width))
            self.places = self.param("position_embedding", normal, (self.max_positions, self.width))
            self.head = layers.Dense(self.width, self.dtype, normal)
            self.norm_head = layers.LayerNorm(self.epsilon)
            self.head_bias = self.param("head_bias", nn.initializers.zeros, (self.vocab_size,))

    def embedded_queries(self, rows: int) -> Float[Array, "b 1 q d"]:
        """Returns the queries of so many images."""
        x = jnp.broadcast_to(self.query_tokens, (rows, 1, *self.query_tokens.shape))
        return self._embedded(x)

    def embedded_text(self, ids: Int[Array, "b k t"], positions: Int[Array, "b k t"]) -> Float[Array, "b k t d"]:
        """Returns texts with their positions, of which a text's first token has 0."""
        return self._embedded(layers.look_up(self.words, ids, self.pad) + self.places[positions])

    @typed
    def __call__(
        self,
        parts: Parts,
        image: Float[Array, "b n c"] | None = None,
        masks: Mapping[str, Any] | None = None,
        past: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Returns the states of the embedded parts, and keys and values {layer: {part: {'k', 'v'} [groups ...]}}.

        Args:
          image: the image's tokens; None where `past` has its keys, or there are no queries.
          masks: where columns may look, each broadcast to [b k t s]: of 'text', 'prompt', 'own'.
          past: what was returned by earlier passes, under the names that `Layer` knows.
        """
        return self.blocks(dict(parts), past or {}, image, masks or {})

    @typed
    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Returns float32 scores of all words, which come from the table of words."""
        x = self.norm_head(layers.gelu(self.head(hidden)))
        words = self.words.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", x, words, preferred_element_type=jnp.float32) + self.head_bias

    def _embedded(self, x: Array) -> Array:
        x = self.norm_embedding(x.astype(self.dtype))
        return self.drop(x, deterministic=not self.has_rng("dropout"))


def selected(keys: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns those of the keys and values of a pass that have these names: a `past` for another pass."""
    return {layer: {name: part[name] for name in names if name in part} for layer, part in keys.items()}


def for_all(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keys [groups b 1 s h d] of a pass as [groups b s h d], which all sequences of a row read."""
    return jax.tree.map(functools.partial(jnp.squeeze, axis=2), keys)
