"""Depth of every pixel: DPT-Hybrid, trained by MiDaS's recipe on ten data sets (Ranftl et al., arXiv 2103.13413).

A ResNet whose weights are standardised makes patches of 16 pixels for a vision transformer; maps of both, taken at four
depths, are fused from coarse to fine. Sources of the architecture: NVlabs/prismer, experts/depth/models.py, blocks.py
and vit.py; timm 0.6.13, models/resnetv2.py, vision_transformer.py and vision_transformer_hybrid.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts import layers
from prismer_jax.experts.expert import Label, SquareExpert
from prismer_jax.experts.winograd import Conv
from prismer_jax.towers.layers import MLP, Attention, LayerNorm, stack
from prismer_jax.towers.stem import resize
from prismer_jax.typing import Array, Float, UInt8, typed
from prismer_jax.weights import modules, rules
from prismer_jax.weights.rules import Rule

STAGES = (3, 4, 9)  # blocks of each stage of the ResNet
PATCH = 16
LAYERS, TAKEN = 12, (8, 11)  # of the transformer; after which of them maps are taken (the first two are the ResNet's)
GRID = 24  # position embeddings on a side: trained at 384 pixels

gelu = functools.partial(jax.nn.gelu, approximate=False)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut, each with GroupNorm; the first block of a stage projects it."""

    features: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        def conv(x: Array, features: int, kernel: int, stride: int, name: str) -> Array:
            x = layers.StandardizedConv(features, kernel, stride, name=f"conv_{name}")(x)
            return layers.GroupNorm(name=f"norm_{name}")(x)

        y = jax.nn.relu(conv(x, self.features // 4, 1, 1, "1"))
        y = jax.nn.relu(conv(y, self.features // 4, 3, self.stride, "2"))
        y = conv(y, self.features, 1, 1, "3")
        if self.project:
            x = conv(x, self.features, 1, self.stride, "shortcut")
        return jax.nn.relu(x + y)


class Block(nn.Module):
    """A layer of the vision transformer; gives its output twice, to go on with and to be kept."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Array, Array]:
        norm = functools.partial(LayerNorm, 1e-6)
        attention = Attention(x.shape[-1], self.heads, dtype=self.dtype, name="attention")
        h = norm(name="norm_attention")(x)
        x = x + attention(h, attention.keys(h))
        x = x + MLP(4 * x.shape[-1], gelu, dtype=self.dtype, name="mlp")(norm(name="norm_mlp")(x))
        return x, x


class ResidualUnit(nn.Module):
    """x plus two 3x3 convolutions of it, each after a ReLU."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        conv = functools.partial(Conv, x.shape[-1], (3, 3), padding=1, dtype=self.dtype)
        return x + conv(name="conv_2")(jax.nn.relu(conv(name="conv_1")(jax.nn.relu(x))))


class Fusion(nn.Module):
    """Adds a finer map to what the coarser ones gave, refines it, and doubles its size."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], skip: Array | None = None) -> Float[Array, "b 2*h 2*w c"]:
        if skip is not None:
            x = x + ResidualUnit(self.dtype, name="skip")(skip)
        x = ResidualUnit(self.dtype, name="refine")(x)
        # The reference convolves after enlarging. Both are linear, and the weights of the four neighbours sum to one,
        # so that even the bias may go first, at a quarter of the cost.
        x = nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="out")(x)
        return resize(x, (2 * x.shape[1], 2 * x.shape[2]))


class DPT(nn.Module):
    """Photos -> inverse depth, relative to each photo, not negative."""

    width: int = 768
    heads: int = 12
    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        """Takes photos scaled to [-1, 1], whose sides are multiples of 32."""
        tap = functools.partial(self.sow, "intermediates")
        conv = functools.partial(Conv, dtype=self.dtype)
        # The ResNet computes in float32 whatever the dtype: from block to block its errors grow a hundredfold.
        x = layers.StandardizedConv(64, 7, 2, name="stem_conv")(image)
        x = jax.nn.relu(layers.GroupNorm(name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        tap("stem", x)
        maps = []
        for stage, blocks in enumerate(STAGES):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = Bottleneck(256 << stage, stride, not block, name=f"stage_{stage}_{block}")(x)
            maps.append(x)
            tap(f"stage{stage}", x)

        h, w = x.shape[1:3]
        x = rearrange(conv(self.width, (1, 1), name="patches")(x), "b h w d -> b (h w) d")
        class_token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(x), 1, self.width)), x], axis=1)
        x = x + self._positions(h, w)  # in float32: what the blocks add to it they compute in the dtype
        _, outputs = stack(Block, LAYERS, "none", broadcast=0)(self.heads, self.dtype, name="blocks")(x)
        tokens = [outputs[i] for i in TAKEN]
        for i, x in zip(TAKEN, tokens, strict=True):
            tap(f"block{i}", x)
        maps[2:] = [self._reassemble(x, (h, w), f"readout_{i}") for i, x in enumerate(tokens, 3)]
        maps[3] = conv(self.width, (3, 3), 2, padding=1, name="readout_4_down")(maps[3])

        path = None
        for i in (4, 3, 2, 1):
            x = conv(self.features, (3, 3), padding=1, use_bias=False, name=f"reduce_{i}")(maps[i - 1])
            tap(f"layer{i}_rn", x)
            path = Fusion(self.dtype, name=f"fusion_{i}")(*((x,) if path is None else (path, x)))
            tap(f"path_{i}", path)
        x = conv(self.features // 2, (3, 3), padding=1, name="head_1")(path)
        x = resize(x, image.shape[1:3])
        x = jax.nn.relu(conv(32, (3, 3), padding=1, name="head_2")(x))
        # To the end in float32: bfloat16 has no more levels than the label.
        x = jax.nn.relu(nn.Conv(1, (1, 1), dtype=jnp.float32, name="head_3")(x.astype(jnp.float32)))
        return x[..., 0]

    def _positions(self, h: int, w: int) -> Float[Array, "1 n d"]:
        """Position embeddings of the class token and of the grid [h, w]: bilinear, half-pixel centres."""
        table = self.param("position_embedding", nn.initializers.normal(0.02), (1, 1 + GRID**2, self.width))
        grid = table[:, 1:].reshape(1, GRID, GRID, self.width)
        grid = jax.image.resize(grid, (1, h, w, self.width), "bilinear", antialias=False)
        return jnp.concatenate([table[:, :1], grid.reshape(1, -1, self.width)], axis=1)

    def _reassemble(self, x: Float[Array, "b n d"], grid: tuple[int, int], name: str) -> Float[Array, "b h w d"]:
        """Tokens as a map again; every one reads the class token first."""
        token, patches = x[:, :1], x[:, 1:]
        x = jnp.concatenate([patches, jnp.broadcast_to(token, patches.shape)], axis=-1)
        x = gelu(nn.Dense(self.width, dtype=self.dtype, name=f"{name}_project")(x))
        x = x.reshape(len(x), *grid, self.width)
        return nn.Conv(self.width, (1, 1), dtype=self.dtype, name=f"{name}_conv")(x)


def _group_norm_conv(conv: str, norm: str, name: str, suffix: str) -> list[Rule]:
    return [*modules.conv(conv, f"{name}conv{suffix}", bias=False), *modules.norm(norm, f"{name}norm{suffix}")]


def _bottleneck(stage: int, block: int) -> list[Rule]:
    key, name = f"pretrained.model.patch_embed.backbone.stages.{stage}.blocks.{block}", f"stage_{stage}_{block}/"
    all_rules = [rule for i in "123" for rule in _group_norm_conv(f"{key}.conv{i}", f"{key}.norm{i}", name, f"_{i}")]
    if not block:
        all_rules += _group_norm_conv(f"{key}.downsample.conv", f"{key}.downsample.norm", name, "_shortcut")
    return all_rules


def _residual_unit(key: str, name: str) -> list[Rule]:
    return [rule for i in "12" for rule in modules.conv(f"{key}.conv{i}", f"{name}/conv_{i}")]


def _fusion(i: int) -> list[Rule]:
    key, name = f"scratch.refinenet{i}", f"fusion_{i}"
    return [
        *(_residual_unit(f"{key}.resConfUnit1", f"{name}/skip") if i < 4 else ()),
        *_residual_unit(f"{key}.resConfUnit2", f"{name}/refine"),
        *modules.conv(f"{key}.out_conv", f"{name}/out"),
    ]


def _readout(i: int) -> list[Rule]:
    key = f"pretrained.act_postprocess{i}"
    return [
        *modules.dense(f"{key}.0.project.0", f"readout_{i}_project"),
        *modules.conv(f"{key}.3", f"readout_{i}_conv"),
    ]


def _block(key: str) -> list[Rule]:
    qkv = [f"params/blocks/attention/{part}" for part in ("query", "key", "value")]
    return [
        *modules.norm(f"{key}.norm1", "blocks/norm_attention"),
        Rule(f"{key}.attn.qkv.weight", tuple(f"{name}/kernel" for name in qkv), "dense"),
        Rule(f"{key}.attn.qkv.bias", tuple(f"{name}/bias" for name in qkv)),
        *modules.dense(f"{key}.attn.proj", "blocks/attention/out"),
        *modules.norm(f"{key}.norm2", "blocks/norm_mlp"),
        *modules.mlp(f"{key}.mlp.fc1", f"{key}.mlp.fc2", "blocks/mlp"),
    ]


class Depth(SquareExpert):
    """Grey maps, the nearest point of a photo white and the farthest black."""

    name = "depth"
    file = "dpt_hybrid-midas-501f0c75.pt"
    network = DPT
    table = rules.Table(
        rules=(
            Rule("pretrained.model.cls_token", ("params/class_token",)),
            Rule("pretrained.model.pos_embed", ("params/position_embedding",)),
            *_group_norm_conv(
                "pretrained.model.patch_embed.backbone.stem.conv",
                "pretrained.model.patch_embed.backbone.stem.norm",
                "stem_",
                "",
            ),
            *(rule for s, blocks in enumerate(STAGES) for b in range(blocks) for rule in _bottleneck(s, b)),
            *modules.conv("pretrained.model.patch_embed.proj", "patches"),
            *_block("pretrained.model.blocks.{}"),
            *_readout(3),
            *_readout(4),
            *modules.conv("pretrained.act_postprocess4.4", "readout_4_down"),
            *(r for i in range(1, 5) for r in modules.conv(f"scratch.layer{i}_rn", f"reduce_{i}", bias=False)),
            *(rule for i in range(1, 5) for rule in _fusion(i)),
            *modules.conv("scratch.output_conv.0", "head_1"),
            *modules.conv("scratch.output_conv.2", "head_2"),
            *modules.conv("scratch.output_conv.4", "head_3"),
        ),
        ignored=(
            r"pretrained\.model\.norm\..*",  # the last map is taken before the final norm
            r"pretrained\.model\.head\..*",  # ImageNet's classes
            r"scratch\.refinenet4\.resConfUnit1\..*",  # the coarsest fusion has no finer map to add
        ),
    )

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {"depth": stretch(self.module.apply(variables, self.normalize(batch["image"])))}

    @staticmethod
    def normalize(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return image.astype(jnp.float32) / 127.5 - 1

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        return Label(layers.to_bytes(layers.resize_map(output["depth"], size))[..., None])


@typed
def stretch(x: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Stretches each map to 0..1. A flat map becomes 0, where the reference divides by 0."""
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    return (x - low) / jnp.where(high > low, high - low, 1)
