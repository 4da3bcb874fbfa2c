"""OPT (arXiv 2205.01068): a decoder-only language model with learned positions, LayerNorm, biases and a tied head.

It stands wherever towers.causal_lm.CausalLM may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.towers.layers import Keys
from prismer_jax.typing import Array, Float, Int, typed

FIRST = 2  # row of the first position; those before it were fairseq's padding


class Block(nn.Module):
    """Attention, then an MLP with a ReLU, each with its norm before it, or with `pre_norm` False behind it.

    Takes x [b k t d], the layer's part of a cache and masks, as towers.causal_lm.Block does.
    """

    heads: int
    mlp_dim: int
    pre_norm: bool
    dropout: float
    initializer_range: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array, prompt: Mapping[str, Array], own: Mapping[str, Array], masks: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        normal, train = nn.initializers.normal(self.initializer_range), self.has_rng("dropout")
        norm_attention, norm_mlp = (layers.LayerNorm(name=f"norm_{name}") for name in ("attention", "mlp"))
        drop = nn.Dropout(self.dropout, deterministic=not train)
        options = dict(dtype=self.dtype, kernel_init=normal, out_init=normal)
        attention = layers.Attention(x.shape[-1], self.heads, 0.0, True, name="attention", **options)
        h = norm_attention(x) if self.pre_norm else x
        new = attention.keys(h, mask=masks["new"])
        seen = [Keys(**keys, mask=masks[name]) for keys, name in ((prompt, "prompt"), (own, "own")) if keys]
        x = x + drop(attention(h, *seen, new))
        x = x if self.pre_norm else norm_attention(x)
        h = norm_mlp(x) if self.pre_norm else x
        mlp = layers.MLP(self.mlp_dim, jax.nn.relu, self.dtype, normal, nn.initializers.zeros, name="mlp")
        x = x + drop(mlp(h))
        x = x if self.pre_norm else norm_mlp(x)
        self.sow("intermediates", "after_mlp", x)
        return x, {"k": new.k, "v": new.v}


class OPT(nn.Module):
    """Embeddings in, hidden states out. Source: facebookresearch/metaseq's models as transformers 4.26.1 has them.

    Attributes:
      max_positions: of a sequence, the image's queries counted.
      word_width: channels of the table of words, where linear layers lead from there to `width` and back (350M).
      pre_norm: False for the 350M alone.
      dropout: of training, of what attention and MLP give.
    """

    width: int
    layers: int
    heads: int
    mlp_dim: int
    vocab_size: int
    max_positions: int = 2048
    word_width: int | None = None
    pre_norm: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02
    remat: str = "none"
    dtype: Any = jnp.float32
    window = 0  # no layer sees less than there is: see CausalLM

    def setup(self) -> None:
        normal, own = nn.initializers.normal(self.initializer_range), self.word_width or self.width
        self.words = self.param("word_embedding", normal, (self.vocab_size, own))
        self.places = self.param("position_embedding", normal, (self.max_positions + FIRST, self.width))
        options = (self.heads, self.mlp_dim, self.pre_norm, self.dropout, self.initializer_range, self.dtype)
        self.blocks = layers.stack(Block, self.layers, self.remat, broadcast=1, cached=2)(*options)
        if self.pre_norm:
            self.norm = layers.LayerNorm()
        if own != self.width:
            self.widen, self.narrow = (layers.Dense(n, self.dtype, normal, use_bias=False) for n in (self.width, own))

    def embed(self, ids: Int[Array, "*b t"]) -> Float[Array, "*b t d"]:
        """Returns the words' embeddings, in the compute type."""
        words = self.words[ids].astype(self.dtype)
        return words if words.shape[-1] == self.width else self.widen(words)

    @typed
    def __call__(
        self,
        x: Float[Array, "b k t d"],
        positions: Int[Array, "b k t"],
        masks: Mapping[str, Any],
        cache: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, "b k t d"], dict[str, Array]]:
        """Returns the last states, and the keys and values of the columns, [layers b k t h d]: see CausalLM.

        Args:
          positions: of the columns, from 0; -1 for padding.
        """
        prompt, own = (cache["shared"]["keys"], cache["own"]) if cache else ({}, {})
        x = (x + self.places[positions + FIRST]).astype(self.dtype)
        x, keys = self.blocks(x, prompt, own, masks)
        return self.norm(x) if self.pre_norm else x, keys

    @typed
    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Returns float32 scores of all words."""
        hidden = hidden if self.words.shape[-1] == self.width else self.narrow(hidden)
        words = self.words.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", hidden, words, preferred_element_type=jnp.float32)
