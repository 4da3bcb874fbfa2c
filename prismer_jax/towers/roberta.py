"""Text decoder of Prismer: RoBERTa made causal, with cross-attention to the image and an adaptor in every layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.towers.layers import Keys
from prismer_jax.typing import Array, Bool, Float, Int, typed


class Layer(nn.Module):
    """Post-norm layer: self-attention, [cross-attention, adaptor,] MLP.

    Takes x [b k t d], the layer's part of a cache (`shared`: 'image' and 'prompt', keys and values [b s h d]; `own`:
    [b k room h d]; {} for what there is not), the image's tokens [b n c] where 'image' is to be computed, and masks of
    the new columns, of the prompt and of `own`. Returns x and the keys and values of the new columns and of the image.
    """

    heads: int
    mlp_dim: int
    dropout: float
    deterministic: bool
    cross: bool
    collect: bool  # return keys and values
    initializer_range: float
    dtype: Any = jnp.float32
    epsilon: float = layers.EPSILON

    @nn.compact
    def __call__(
        self, x: Array, shared: dict[str, Any], own: dict[str, Array], encoded: Array | None, masks: dict[str, Array]
    ) -> tuple[Array, dict[str, Any] | None]:
        attention = self._attention("self", x.shape[-1])
        new = attention.keys(x, mask=masks["new"])
        parts = [Keys(**shared["prompt"], mask=masks["prompt"])] if "prompt" in shared else []
        parts += [Keys(**own, mask=masks["own"])] if own else []
        x = layers.LayerNorm(self.epsilon, name="norm_self")(self._drop(attention(x, *parts, new)) + x)
        cache = {"new": {"k": new.k, "v": new.v}}
        if self.cross:
            attention = self._attention("cross", x.shape[-1])
            # The image's keys lie head by head: every step multiplies by them, and would have to sort them first.
            if encoded is not None:
                image = attention.keys(encoded)
                cache["image"] = {"k": image.k.swapaxes(1, 2), "v": image.v.swapaxes(1, 2)}
            else:
                image = Keys(*(shared["image"][name].swapaxes(1, 2) for name in ("k", "v")))
            x = layers.LayerNorm(self.epsilon, name="norm_cross")(self._drop(attention(x, image)) + x)
            adaptor = self._mlp("adaptor", x.shape[-1], layers.squared_relu)
            x = layers.LayerNorm(self.epsilon, name="norm_adaptor")(adaptor(x) + x)
            self.sow("intermediates", "after_adaptor", x)
        added = self._drop(self._mlp("mlp", self.mlp_dim, layers.gelu)(x))
        x = layers.LayerNorm(self.epsilon, name="norm_mlp")(added + x)
        return x, cache if self.collect else None

    def _attention(self, name: str, width: int) -> layers.Attention:
        normal = nn.initializers.normal(self.initializer_range)
        options = dict(dtype=self.dtype, kernel_init=normal, out_init=normal, name=f"{name}_attention")
        return layers.Attention(width, self.heads, self.dropout, self.deterministic, **options)

    def _mlp(self, name: str, hidden: int, activation: Any) -> layers.MLP:
        normal = nn.initializers.normal(self.initializer_range)
        options = dict(kernel_init=normal, bias_init=nn.initializers.zeros, name=name)
        return layers.MLP(hidden, activation, self.dtype, **options)

    def _drop(self, x: Array) -> Array:
        return nn.Dropout(self.dropout, deterministic=self.deterministic)(x)


class TextDecoder(nn.Module):
    """Token ids -> logits. Source: NVlabs/prismer, model/modules/roberta.py.

    Ids have a sequence axis k; training and prefill use k = 1. After the layers with cross-attention comes one without
    (`output_layer`), then the language-model head, tied to the word embedding. Ids and positions equal to `pad` are
    padding, whose embeddings their lookup does not train.
    """

    width: int
    layers: int
    heads: int
    mlp_dim: int
    vocab_size: int
    max_positions: int
    dropout: float = 0.1
    initializer_range: float = 0.02  # RoBERTa's, for a width of 768; narrow ones learn faster from more
    pad: int = 1
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self,
        ids: Int[Array, "b k t"],
        positions: Int[Array, "b k t"],
        masks: dict[str, Bool[Array, "*_"]],
        encoded: Float[Array, "b n c"] | None = None,
        cache: dict[str, Any] | None = None,
        *,
        last_only: bool = False,
        collect: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "b k _ v"], dict[str, Any]]:
        """Returns logits (of the last column only, if so asked) and, with `collect`, keys and values.

        Args:
          masks: where each column may look, of 'new' columns and, with a cache, of its 'prompt' and its 'own' columns;
            each broadcasts to [b k t s].
          encoded: the image's tokens, where there is no cache.
          cache: {'shared', 'own'}, as `models.prismer` documents it.
        """
        deterministic = not train or self.dropout == 0
        normal = nn.initializers.normal(self.initializer_range)
        words = self.param("word_embedding", layers.zero_row(normal, self.pad), (self.vocab_size, self.width))
        places = self.param("position_embedding", layers.zero_row(normal, self.pad), (self.max_positions, self.width))
        kind = self.param("token_type_embedding", normal, (1, self.width))
        x = layers.look_up(words, ids, self.pad) + kind[0]
        x = x + layers.look_up(places, positions, self.pad)
        x = layers.LayerNorm(name="norm_embedding")(x.astype(self.dtype))
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        self.sow("intermediates", "embeddings", x)

        options = (self.heads, self.mlp_dim, self.dropout, deterministic)
        common = dict(collect=collect, initializer_range=self.initializer_range, dtype=self.dtype)
        empty = {"layers": {}, "output_layer": {}}
        shared, own = (cache["shared"]["keys"], cache["own"]) if cache else (empty, empty)
        stack = layers.stack(Layer, self.layers, self.remat, broadcast=2, cached=2)
        decoder_layers = stack(*options, cross=True, name="layers", **common)
        x, keys = decoder_layers(x, shared["layers"], own["layers"], encoded, masks)
        first = jax.tree.map(lambda leaf: leaf[0], (shared["output_layer"], own["output_layer"]))
        x, last_keys = Layer(*options, cross=False, name="output_layer", **common)(x, *first, None, masks)
        self.sow("intermediates", "hidden", x)

        x = x[:, :, -1:] if last_only else x
        x = layers.gelu(layers.Dense(self.width, dtype=self.dtype, kernel_init=normal, name="head")(x))
        x = layers.LayerNorm(name="norm_head")(x)
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocab_size,))
        logits = jnp.einsum("bktd,vd->bktv", x, words.astype(self.dtype), preferred_element_type=jnp.float32) + bias
        if not collect:
            return logits, {}
        return logits, {"layers": keys, "output_layer": jax.tree.map(lambda leaf: leaf[None], last_keys)}
