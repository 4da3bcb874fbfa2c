"""Perceiver resampler: any number of expert tokens becomes a fixed number of latent tokens."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.towers import layers
from prismer_jax.typing import Array, Float, typed


class Block(nn.Module):
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latents: Array, x: Array) -> tuple[Array, None]:
        width = latents.shape[-1]
        attention = layers.Attention(width, self.heads, dtype=self.dtype, name="attention")
        query = layers.LayerNorm(name="norm_latents")(latents)
        tokens = jnp.concatenate([query, layers.LayerNorm(name="norm_tokens")(x)], axis=1)
        latents = latents + attention(query, attention.keys(tokens))
        mlp = layers.MLP(4 * width, layers.squared_relu, dtype=self.dtype, name="mlp")
        return latents + mlp(layers.LayerNorm(name="norm_mlp")(latents)), None


class Resampler(nn.Module):
    """Latents that attend to themselves and to all expert tokens, without a norm at the end.

    Source: NVlabs/prismer, model/modules/resampler.py; 4 layers, 8 heads and 64 latents at every size of model.
    """

    latents: int = 64
    layers: int = 4
    heads: int = 8
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b {self.latents} d"]:
        width = x.shape[-1]
        latents = self.param("latents", nn.initializers.normal(width**-0.5), (self.latents, width))
        latents = jnp.broadcast_to(latents, (x.shape[0], *latents.shape)).astype(x.dtype)
        blocks = layers.stack(Block, self.layers, self.remat, broadcast=1)
        return blocks(self.heads, dtype=self.dtype, name="blocks")(latents, x)[0]
