"""Image encoder of Prismer: a vision transformer with adaptors that also reads the experts' label maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from prismer_jax.labels import EXPERTS
from prismer_jax.towers import layers
from prismer_jax.towers.resampler import Resampler
from prismer_jax.towers.stem import INSTANCE_ROWS, SCALE, STRIDES, Stem, add_instances, resize, resize_ids
from prismer_jax.typing import Array, Float, Int, UInt8, typed

# What a stem reads: a map of real numbers [b h w c], or ids uint8 [b h w] with the features of every id [#b 256 64].
Features = Mapping[str, Array | tuple[Array, Array]]


class Block(nn.Module):
    """Order of the reference: attention, adaptor, MLP, each before its norm's residual."""

    heads: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        width = x.shape[-1]
        # Initialisation as CLIP's transformer (openai/CLIP, clip/model.py: CLIP.initialize_parameters); the adaptor has
        # PyTorch's defaults, as in the reference.
        normal, out = nn.initializers.normal, nn.initializers.normal((2 * self.depth * width) ** -0.5)
        init = dict(kernel_init=normal(width**-0.5), out_init=out)
        attention = layers.Attention(width, self.heads, dtype=self.dtype, name="attention", **init)
        h = layers.LayerNorm(name="norm_attention")(x)
        x = x + attention(h, attention.keys(h))
        adaptor = layers.MLP(width, layers.squared_relu, dtype=self.dtype, name="adaptor")
        x = x + adaptor(layers.LayerNorm(name="norm_adaptor")(x))
        self.sow("intermediates", "after_adaptor", x)
        init = dict(kernel_init=normal((2 * width) ** -0.5), bias_init=nn.initializers.zeros, out_init=out)
        mlp = layers.MLP(4 * width, layers.quick_gelu, dtype=self.dtype, name="mlp", **init)
        return x + mlp(layers.LayerNorm(name="norm_mlp")(x)), None


class VisionEncoder(nn.Module):
    """Image and expert features -> tokens: one a patch, then the resampler's latents where there are experts.

    Source: NVlabs/prismer, model/modules/vit.py, but for `places`. The resampler exists iff there is an expert.
    """

    experts: tuple[str, ...]
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    latents: int = 64
    resampler_layers: int = 4
    resampler_heads: int = 8
    places: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        features: Features,
        instances: tuple[UInt8[Array, "b ih iw"], Int[Array, "#b 256"]] | None = None,
        train: bool = False,
    ) -> Float[Array, "b n {self.width}"]:
        side = self.image_size // self.patch_size
        normal = nn.initializers.normal(self.width**-0.5)
        positions = self.param("position_embedding", normal, (side**2, self.width))

        layers.check_patches(image, self.patch_size, self.image_size)
        x = self._patches(image, side)
        self.sow("intermediates", "tokens_rgb", x)
        x = (rearrange(x, "b h w d -> b (h w) d") + positions).astype(self.dtype)  # gradients of tables in float32
        if self.experts:
            maps, means = self._expert_maps(features, instances, train)
            rows = [rearrange(m, "b h w d -> b (h w) d") for m in maps]
            where = jnp.concatenate([layers.resize_positions(positions, m.shape[1:3]) for m in maps])
            tokens = (jnp.concatenate(rows, axis=1) + where).astype(self.dtype)
            self.sow("intermediates", "tokens", tokens)
            sizes = self.latents, self.resampler_layers, self.resampler_heads
            latents = Resampler(*sizes, remat=self.remat, dtype=self.dtype, name="resampler")(tokens)
            self.sow("intermediates", "latents", latents)
            x = jnp.concatenate([x, latents], axis=1)
        x = layers.LayerNorm(name="norm_pre")(x)
        self.sow("intermediates", "normed", x)
        blocks = layers.stack(Block, self.depth, self.remat, broadcast=0)
        x, _ = blocks(self.heads, self.depth, dtype=self.dtype, name="blocks")(x)
        x = layers.LayerNorm(name="norm_post")(x)
        self.sow("patches", "tokens", x[:, : side**2])  # for training.targets
        if self.experts and self.places:
            project = layers.Dense(self.width, self.dtype, name="places")
            x = x.at[:, : side**2].add(project(jnp.concatenate(rows + means, axis=-1)))
        return x

    def _patches(self, image: Array, side: int) -> Array:
        """A convolution whose stride is its size, as one matrix product; what the last patch leaves over is unread."""
        p = self.patch_size
        kernel = self.param("patch_embedding", layers.torch_uniform(3 * p * p), (p, p, 3, self.width))
        image = image[:, : side * p, : side * p].astype(self.dtype)
        patches = rearrange(image, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        return layers.product(patches, kernel.reshape(-1, self.width))

    def _expert_maps(self, features: Features, instances: Any, train: bool) -> tuple[list[Array], list[Array]]:
        """Returns the stems' tokens [b h w d] of each expert, and with `places` its map's means in patches [b n c]."""
        stems, maps, means, side = {}, [], [], self.image_size // self.patch_size
        whole = side * self.patch_size
        for expert in self.experts:
            item, kind = features[expert], "ids" if EXPERTS[expert].storage == "ids" else "scaled"
            sides = (whole, whole) if self.places else (item[0] if isinstance(item, tuple) else item).shape[1:3]
            size = tuple(SCALE[kind] * n // self.patch_size for n in sides)
            x = resize_ids(*item, size) if isinstance(item, tuple) else resize(item, size)
            if self.places:
                means.append(rearrange(x, "b (h p) (w q) c -> b (h w) (p q) c", h=side, w=side).mean(2))
            domain = EXPERTS[expert].stem  # both segmentations share a stem
            if domain not in stems:
                stem = layers.rematerialised(Stem, self.remat)  # kept whole, stems of photos of 480 pixels fill a chip
                stems[domain] = stem(self.width, STRIDES[kind], train, dtype=self.dtype, name=f"stem_{domain}")
            x = stems[domain](x)
            self.sow("intermediates", f"tokens_{domain}", x)
            if expert == "obj_detection":
                normal = nn.initializers.normal(self.width**-0.5)
                embedding = self.param("instance_embedding", normal, (INSTANCE_ROWS, self.width))
                if instances is not None:
                    x = add_instances(x, *instances, embedding)
            maps.append(x)
        return maps, means
