"""Text decoder of Prismer: RoBERTa made causal, with cross-attention to the image and an adaptor in every layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.typing import Array, Bool, Float, Int, typed

BOS, PAD = 0, 1  # RoBERTa's ids of <s> and of padding; positions start after that of padding


def gelu(x: Array) -> Array:
    """x·Φ(x). By erf, as PyTorch has it: jax.nn.gelu's erfc costs half as much again on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def without_gradient_of(row: Array, embedded: Array) -> Array:
    """The lookup of a padding id passes no gradient to its row, as PyTorch's Embedding(padding_idx=...) has it."""
    return jnp.where(row[..., None], jax.lax.stop_gradient(embedded), embedded)


class Layer(nn.Module):
    """Post-norm layer: self-attention, [cross-attention, adaptor,] MLP."""

    heads: int
    mlp_dim: int
    dropout: float
    deterministic: bool
    cross: bool
    collect: bool  # return keys and values
    initializer_range: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        cached: dict[str, Array],
        shared: dict[str, Array],
        encoded: Array | None,
        mask: Array,
        index: Any,
    ) -> tuple[Array, dict[str, dict[str, Array]] | None]:
        normal = nn.initializers.normal(self.initializer_range)
        x, own = self._attend("self", x, x, cached, mask, index)
        kept = {"layers": own}
        if self.cross:
            # Every beam of an image reads the same keys: the beam axis joins the time axis.
            b, k, t, d = x.shape
            flat, kept["shared"] = self._attend("cross", x.reshape(b, k * t, d), encoded, shared)
            x = flat.reshape(b, k, t, d)
            adaptor = layers.MLP(
                d,
                layers.squared_relu,
                dtype=self.dtype,
                kernel_init=normal,
                bias_init=nn.initializers.zeros,
                name="adaptor",
            )
            x = layers.LayerNorm(name="norm_adaptor")(adaptor(x) + x)
            self.sow("intermediates", "after_adaptor", x)
        mlp = layers.MLP(
            self.mlp_dim, gelu, dtype=self.dtype, kernel_init=normal, bias_init=nn.initializers.zeros, name="mlp"
        )
        x = layers.LayerNorm(name="norm_mlp")(self._drop(mlp(x)) + x)
        return x, kept if self.collect else None

    def _attend(
        self, name: str, x: Array, source: Array | None, cached: dict, mask: Array | None = None, index: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        normal = nn.initializers.normal(self.initializer_range)
        attention = layers.Attention(
            x.shape[-1],
            self.heads,
            self.dropout,
            self.deterministic,
            dtype=self.dtype,
            kernel_init=normal,
            out_init=normal,
            name=f"{name}_attention",
        )
        if source is None:  # the image's keys and values are known
            keys, values = own = cached["k"], cached["v"]
        else:
            keys, values = own = attention.keys_values(source)
            if cached:  # put the new columns behind those of the cache
                at = (0, 0, index, 0, 0)
                keys = jax.lax.dynamic_update_slice(cached["k"], keys, at)
                values = jax.lax.dynamic_update_slice(cached["v"], values, at)
        y = self._drop(attention(x, keys, values, mask))
        return layers.LayerNorm(name=f"norm_{name}")(y + x), {"k": own[0], "v": own[1]}

    def _drop(self, x: Array) -> Array:
        return nn.Dropout(self.dropout, deterministic=self.deterministic)(x)


class TextDecoder(nn.Module):
    """Token ids -> logits. Source: NVlabs/prismer, model/modules/roberta.py.

    Ids have a beam axis k; training and prefill use k = 1. After the layers with cross-attention comes one without
    (`output_layer`), then the language-model head, tied to the word embedding.
    """

    width: int
    layers: int
    heads: int
    mlp_dim: int
    vocab_size: int
    max_positions: int
    dropout: float = 0.1
    initializer_range: float = 0.02  # RoBERTa's, for a width of 768; narrow ones learn faster from more
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self,
        ids: Int[Array, "b k t"],
        positions: Int[Array, "b k t"],
        mask: Bool[Array, "b k t s"],
        encoded: Float[Array, "b n c"] | None = None,
        cache: dict[str, Any] | None = None,
        *,
        last_only: bool = False,
        collect: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "b k _ v"], dict[str, Any]]:
        """Returns logits (of the last column only, if so asked) and, with `collect`, the new keys and values."""
        deterministic = not train or self.dropout == 0
        normal = nn.initializers.normal(self.initializer_range)
        words = self.param("word_embedding", _padded(normal), (self.vocab_size, self.width))
        places = self.param("position_embedding", _padded(normal), (self.max_positions, self.width))
        kind = self.param("token_type_embedding", normal, (1, self.width))
        x = without_gradient_of(ids == PAD, words[ids]) + kind[0]
        x = x + without_gradient_of(positions == PAD, places[positions])
        x = layers.LayerNorm(name="norm_embedding")(x.astype(self.dtype))
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        self.sow("intermediates", "embeddings", x)

        options = (self.heads, self.mlp_dim, self.dropout, deterministic)
        common = dict(collect=collect, initializer_range=self.initializer_range, dtype=self.dtype)
        past = cache or {"layers": {"layers": {}, "output_layer": {}}, "shared": {}, "index": 0}
        stack = layers.stack(Layer, self.layers, self.remat, broadcast=3, cached=2)
        x, kept = stack(*options, cross=True, name="layers", **common)(
            x, past["layers"]["layers"], past["shared"], encoded, mask, past["index"]
        )
        own = jax.tree.map(lambda leaf: leaf[0], past["layers"]["output_layer"])
        x, kept_last = Layer(*options, cross=False, name="output_layer", **common)(
            x, own, {}, None, mask, past["index"]
        )
        self.sow("intermediates", "hidden", x)

        x = x[:, :, -1:] if last_only else x
        x = gelu(nn.Dense(self.width, dtype=self.dtype, kernel_init=normal, name="head")(x))
        x = layers.LayerNorm(name="norm_head")(x)
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocab_size,))
        logits = jnp.einsum("bktd,vd->bktv", x, words.astype(self.dtype), preferred_element_type=jnp.float32) + bias
        if not collect:
            return logits, {}
        return logits, {
            "layers": {
                "layers": kept["layers"],
                "output_layer": jax.tree.map(lambda leaf: leaf[None], kept_last["layers"]),
            },
            "shared": kept["shared"],
        }


def _padded(init: layers.Initializer) -> layers.Initializer:
    return lambda key, shape, dtype=jnp.float32: init(key, shape, dtype).at[PAD].set(0.0)
