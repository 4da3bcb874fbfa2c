"""Edges: DexiNed (arXiv 1909.01955), as NVlabs/prismer runs it (experts/edge/model.py, images.py, generate_edge.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from prismer_jax.experts.convolution import ConvNorm, Double
from prismer_jax.experts.expert import Label, SquareExpert
from prismer_jax.typing import Array, Float, UInt8, typed
from prismer_jax.weights import modules, rules
from prismer_jax.weights.rules import Rule

# ImageNet's mean in bytes, in the order of the network's channels: blue, green, red.
MEAN_BGR = (0.406 * 255, 0.456 * 255, 0.485 * 255)
# Sources of the six edge maps, and how often each is doubled to reach the input's size.
DOUBLINGS = {"block_1": 1, "block_2": 1, "dblock_3": 2, "dblock_4": 3, "dblock_5": 4, "dblock_6": 4}
UP_WIDTH = 16


def max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1)] * 2)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions; the first has the stride."""

    hidden: int
    features: int
    stride: int = 1
    activate: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        x = ConvNorm(self.hidden, 3, self.stride, 1, dtype=self.dtype, name="first")(x)
        x = ConvNorm(self.features, 3, 1, 1, dtype=self.dtype, name="second")(jax.nn.relu(x))
        return jax.nn.relu(x) if self.activate else x


class DenseBlock(nn.Module):
    """Layers that each average what two convolutions make of the last one's output with the same skip."""

    features: int
    layers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], skip: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        for i in range(self.layers):
            # All the zeros come before the first convolution: it sees two pixels beyond the border, the second none.
            # Cropped, because XLA convolves without padding up to four times as slowly on a CPU with jaxlib 0.10
            # (findings/jax_cpu_unpadded_convolution.sh).
            first = ConvNorm(self.features, 3, 1, 2, dtype=self.dtype, name=f"layer_{i}_first")
            second = ConvNorm(self.features, 3, 1, 1, dtype=self.dtype, name=f"layer_{i}_second")
            x = second(jax.nn.relu(first(jax.nn.relu(x))))[:, 1:-1, 1:-1]
            x = 0.5 * (x + skip)
        return x


class Up(nn.Module):
    """One edge map at the input's size: as often as needed a 1x1 convolution, ReLU and a transposed convolution."""

    doublings: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W 1"]:
        for i in range(self.doublings):
            width = 1 if i == self.doublings - 1 else UP_WIDTH
            x = nn.Conv(width, (1, 1), dtype=self.dtype, name=f"conv_{i}")(x)
            x = Double(2**self.doublings, dtype=self.dtype, name=f"double_{i}")(jax.nn.relu(x))
        return x


class DexiNed(nn.Module):
    """The network. Block n has 1/2, 1/2, 1/4, 1/8, 1/16, 1/16 of the input's size, which is a multiple of 16."""

    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 7"]:
        """Returns logits of six edge maps, fine to coarse, and of their fusion.

        Args:
          x: blue, green, red in 0..255 without MEAN_BGR.
        """
        dense = functools.partial(DenseBlock, dtype=self.dtype)

        def link(name: str, features: int, x: Array, stride: int = 1) -> Array:
            return ConvNorm(features, 1, stride, dtype=self.dtype, name=name)(x)

        block_1 = DoubleConv(32, 64, 2, dtype=self.dtype, name="block_1")(x.astype(self.dtype))
        block_2 = DoubleConv(128, 128, activate=False, dtype=self.dtype, name="block_2")(block_1)
        down_2 = max_pool(block_2)
        sum_2 = down_2 + link("side_1", 128, block_1, 2)

        block_3 = dense(256, 2, name="dblock_3")(sum_2, link("pre_dense_3", 256, down_2))
        down_3 = max_pool(block_3)
        sum_3 = down_3 + link("side_2", 256, sum_2, 2)

        half_2 = link("pre_dense_2", 256, down_2, 2)
        block_4 = dense(512, 3, name="dblock_4")(sum_3, link("pre_dense_4", 512, down_3 + half_2))
        down_4 = max_pool(block_4)
        sum_4 = down_4 + link("side_3", 512, sum_3, 2)

        block_5 = dense(512, 3, name="dblock_5")(sum_4, link("pre_dense_5", 512, down_4))
        sum_5 = block_5 + link("side_4", 512, sum_4)
        block_6 = dense(256, 3, name="dblock_6")(sum_5, link("pre_dense_6", 256, block_5))

        blocks = (block_1, block_2, block_3, block_4, block_5, block_6)
        maps = [
            Up(doublings, dtype=self.dtype, name=f"up_{i}")(block)
            for i, (doublings, block) in enumerate(zip(DOUBLINGS.values(), blocks, strict=True), start=1)
        ]
        maps = jnp.concatenate(maps, -1)
        return jnp.concatenate([maps, nn.Conv(1, (1, 1), dtype=self.dtype, name="fuse")(maps)], -1)


def _rules() -> list[Rule]:
    all_rules = []
    for block in ("block_1", "block_2"):
        for i, name in enumerate(("first", "second"), start=1):
            all_rules += modules.conv_norm(f"{block}.conv{i}", f"{block}.bn{i}", f"{block}/{name}", bias=True)
    for block, layers in (("dblock_3", 2), ("dblock_4", 3), ("dblock_5", 3), ("dblock_6", 3)):
        for layer in range(layers):
            key = f"{block}.denselayer{layer + 1}"
            for i, name in enumerate(("first", "second"), start=1):
                unit = f"{block}/layer_{layer}_{name}"
                all_rules += modules.conv_norm(f"{key}.conv{i}", f"{key}.norm{i}", unit, bias=True)
    for link in [*(f"side_{i}" for i in range(1, 5)), *(f"pre_dense_{i}" for i in range(2, 7))]:
        all_rules += modules.conv_norm(f"{link}.conv", f"{link}.bn", link, bias=True)
    for block, doublings in enumerate(DOUBLINGS.values(), start=1):
        for i in range(doublings):
            key, name = f"up_block_{block}.features", f"up_{block}"
            all_rules += modules.conv(f"{key}.{3 * i}", f"{name}/conv_{i}")
            all_rules += [
                Rule(f"{key}.{3 * i + 2}.weight", (f"params/{name}/double_{i}/kernel",), "conv_transpose"),
                Rule(f"{key}.{3 * i + 2}.bias", (f"params/{name}/double_{i}/bias",)),
            ]
    return [*all_rules, *modules.conv("block_cat.conv", "fuse")]


class Edge(SquareExpert):
    """Edge strength as grey levels, dark on white."""

    name, file = "edge", "10_model.pth"
    network = DexiNed
    table = rules.Table(
        rules=tuple(_rules()),
        # The official network makes these layers and never calls them.
        ignored=(r"side_5\..*", r"block_cat\.bn\..*"),
    )

    @staticmethod
    @typed
    def normalize(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return image[..., ::-1].astype(jnp.float32) - jnp.asarray(MEAN_BGR, jnp.float32)

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {"edge": strength(self.module.apply(variables, self.normalize(batch["image"])))}

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        grey = Image.fromarray(to_grey(output["edge"]))
        resized = grey.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return Label(np.asarray(resized)[..., None])


@typed
def strength(logits: Float[Array, "b h w 7"]) -> Float[Array, "b h w"]:
    """Returns the fused map as probabilities, in float32 whatever the network computed in."""
    return jax.nn.sigmoid(logits[..., -1].astype(jnp.float32))


@typed
def to_grey(edge: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Stretches a map to 0..255, cuts off the fraction and inverts it. A constant map is white."""
    low, high = edge.min(), edge.max()
    return 255 - ((edge - low) * np.float32(255) / (high - low + np.float32(1e-12))).astype(np.uint8)
