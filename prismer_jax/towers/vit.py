"""Vision transformer without a head: SigLIP and SigLIP 2, DINOv2 with a class token and layer scales, EVA's, CLIP's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.errors import choose
from prismer_jax.towers import layers
from prismer_jax.typing import Array, Float, typed

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": layers.quick_gelu,
}
_NORMAL = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Pre-norm block: attention, then MLP, each with a learned scale of its output where `layer_scale` is above 0.

    Attention's weights and both outputs drop out where there is a random stream 'dropout', as there is in training.
    """

    heads: int
    mlp_dim: int
    activation: str
    epsilon: float
    layer_scale: float
    dropout: float = 0.0
    key_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], None]:
        width, norm = x.shape[-1], functools.partial(layers.LayerNorm, self.epsilon)
        init = dict(dtype=self.dtype, kernel_init=_NORMAL)
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not self.has_rng("dropout"))
        rates = (self.dropout, not self.has_rng("dropout"))
        own = dict(out_init=_NORMAL, key_bias=self.key_bias)
        attention = layers.Attention(width, self.heads, *rates, name="attention", **own, **init)
        h = norm(name="norm_attention")(x)
        x = x + self._scaled("scale_attention", drop(attention(h, attention.keys(h))))
        self.sow("intermediates", "after_attention", x)
        activation = choose("activation", self.activation, ACTIVATIONS)
        mlp = layers.MLP(self.mlp_dim, activation, bias_init=nn.initializers.zeros, name="mlp", **init)
        x = x + self._scaled("scale_mlp", drop(mlp(norm(name="norm_mlp")(x))))
        self.sow("intermediates", "after_mlp", x)
        return x, None

    def _scaled(self, name: str, x: Array) -> Array:
        if not self.layer_scale:
            return x
        scale = self.param(name, nn.initializers.constant(self.layer_scale), x.shape[-1:])
        return (x * scale).astype(x.dtype)


class ViT(nn.Module):
    """Pixels -> a token a patch, row by row, after the last norm.

    Sources: google-research/big_vision, models/vit.py (SigLIP); facebookresearch/dinov2, models/vision_transformer.py;
    salesforce/LAVIS, models/eva_vit.py; openai/CLIP, clip/model.py.

    Attributes:
      image_size: side of the square images; `positions` are learned for its grid.
      class_token: put a learned token before the patches; it takes part in attention and is not returned, unless
        `keep_class` says so.
      layer_scale: initial value of DINOv2's scales of each block's two branches; 0 for a model without.
      patch_bias: the patches' projection has a bias.
      first_norm: normalise the embeddings, as CLIP does.
      final_norm: normalise what the blocks give.
      key_bias: attention's keys have a bias, as queries and values have.
      dropout: of embeddings and within blocks in training, as in huggingface/nanoVLM, models/vision_transformer.py.
      remat: what the backward pass keeps, a name of towers.layers.REMAT.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    class_token: bool = False
    layer_scale: float = 0.0
    keep_class: bool = False
    patch_bias: bool = True
    first_norm: bool = False
    final_norm: bool = True
    key_bias: bool = True
    dropout: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    @property
    def grid(self) -> int:
        """Returns the number of patches on a side."""
        return self.image_size // self.patch_size

    @nn.compact
    @typed
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b n {self.width}"]:
        positions = self.param("position_embedding", _NORMAL, (self.grid**2 + self.class_token, self.width))
        layers.check_patches(image, self.patch_size, self.image_size)
        x = self._patches(image)
        self.sow("intermediates", "patches", x)
        if self.class_token:
            token = jnp.broadcast_to(self.param("class_embedding", _NORMAL, (self.width,)), (len(x), 1, self.width))
            x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
        x = (x + positions).astype(self.dtype)  # gradients of tables are sums over a batch, in float32
        x = layers.LayerNorm(self.epsilon, name="norm_first")(x) if self.first_norm else x
        self.sow("intermediates", "embeddings", x)
        x = nn.Dropout(self.dropout)(x, deterministic=not self.has_rng("dropout"))
        options = (self.heads, self.mlp_dim, self.activation, self.epsilon, self.layer_scale, self.dropout)
        blocks = layers.stack(Block, self.layers, self.remat, broadcast=0)
        x, _ = blocks(*options, key_bias=self.key_bias, dtype=self.dtype, name="blocks")(x)
        x = layers.LayerNorm(self.epsilon, name="norm")(x) if self.final_norm else x
        self.sow("patches", "tokens", x[:, int(self.class_token) :])  # for training.targets
        return x[:, int(self.class_token and not self.keep_class) :]

    def _patches(self, image: Array) -> Array:
        """A convolution whose stride is its size, as one matrix product."""
        p = self.patch_size
        kernel = self.param("patch_embedding", layers.torch_uniform(3 * p * p), (p, p, 3, self.width))
        bias = self.param("patch_bias", nn.initializers.zeros, (self.width,)) if self.patch_bias else None
        image = image[:, : self.grid * p, : self.grid * p].astype(self.dtype)
        patches = rearrange(image, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
        return layers.product(patches, kernel.reshape(-1, self.width), bias)


@typed
def pixel_shuffle(x: Float[Array, "b n d"], factor: int) -> Float[Array, "b m e"]:
    """Joins each block of factor x factor tokens of a square grid into one, channels (row, column, d), d fastest.

    Source: huggingface/nanoVLM, models/modality_projector.py.
    """
    side = int(np.sqrt(x.shape[1]))
    return rearrange(x, "b (h p w q) d -> b (h w) (p q d)", p=factor, q=factor, h=side // factor, w=side // factor)
