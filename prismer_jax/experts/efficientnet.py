"""EfficientNet-B5 (arXiv 1905.11946) as an encoder that gives maps of five sizes.

Padding, epsilon and keys are those of TensorFlow's weights in geffnet 1.0.2 (gen_efficientnet.py,
efficientnet_builder.py: tf_efficientnet_b5_ap). All is in float32: bfloat16's errors grow from block to block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from flax import linen as nn

from prismer_jax.experts.convolution import ConvNorm, Depthwise
from prismer_jax.towers.stem import BatchNorm
from prismer_jax.typing import Array, Float, typed
from prismer_jax.weights import modules
from prismer_jax.weights.rules import Rule

EPSILON = 1e-3
SQUEEZE = 0.25  # of a block's input channels
STEM, HEAD = 48, 2048  # channels


class Stage(NamedTuple):
    """Blocks of one size; the first has the stride and changes the number of channels."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    features: int


STAGES = (
    Stage(3, 3, 1, 1, 24),
    Stage(5, 3, 2, 6, 40),
    Stage(5, 5, 2, 6, 64),
    Stage(7, 3, 2, 6, 128),
    Stage(7, 5, 1, 6, 176),
    Stage(9, 5, 2, 6, 304),
    Stage(3, 3, 1, 6, 512),
)
TAKEN = (0, 1, 2, 4)  # stages whose maps are given, besides the head's: 1/2, 1/4, 1/8, 1/16 of the input's size


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole map has of them."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        conv = functools.partial(nn.Conv, kernel_size=(1, 1))
        squeezed = x.mean((1, 2), keepdims=True)
        hidden = jax.nn.silu(conv(self.hidden, name="reduce")(squeezed))
        return x * jax.nn.sigmoid(conv(x.shape[-1], name="expand")(hidden))


class Block(nn.Module):
    """An inverted residual: expansion (if any), depthwise convolution, squeeze-and-excite, linear projection."""

    kernel: int
    stride: int
    expand: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        pointwise = functools.partial(ConvNorm, kernel=1, bias=False, epsilon=EPSILON)
        y = x
        if self.expand > 1:
            y = jax.nn.silu(pointwise(self.expand * x.shape[-1], name="expand")(y))
        y = Depthwise(self.kernel, self.stride, name="depthwise")(y)
        y = jax.nn.silu(BatchNorm(epsilon=EPSILON, name="depthwise_norm")(y))
        y = SqueezeExcite(int(SQUEEZE * x.shape[-1]), name="squeeze")(y)
        y = pointwise(self.features, name="project")(y)
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """The encoder, without the norm and the classifier after its last convolution."""

    @nn.compact
    @typed
    def __call__(self, image: Float[Array, "b h w 3"]) -> list[Array]:
        """Returns maps of 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size (rounded up)."""
        tap = functools.partial(self.sow, "intermediates")
        stem = ConvNorm(STEM, 3, 2, "SAME", bias=False, epsilon=EPSILON, name="stem")
        x = jax.nn.silu(stem(image))
        tap("act1", x)
        maps = []
        for i, (blocks, kernel, stride, expand, features) in enumerate(STAGES):
            for j in range(blocks):
                x = Block(kernel, 1 if j else stride, expand, features, name=f"stage_{i}_{j}")(x)
            if i in TAKEN:
                tap(f"blocks.{i}", x)
                maps.append(x)
        x = nn.Conv(HEAD, (1, 1), use_bias=False, name="head")(x)
        tap("conv_head", x)
        return [*maps, x]


def _block(key: str, name: str, expand: bool) -> list[Rule]:
    depthwise, projection, norms = ("bn2", "conv_pwl", "bn3") if expand else ("bn1", "conv_pw", "bn2")
    return [
        *(modules.conv_norm(f"{key}.conv_pw", f"{key}.bn1", f"{name}/expand") if expand else ()),
        *modules.conv(f"{key}.conv_dw", f"{name}/depthwise", bias=False),
        *modules.batch_norm(f"{key}.{depthwise}", f"{name}/depthwise_norm"),
        *modules.conv(f"{key}.se.conv_reduce", f"{name}/squeeze/reduce"),
        *modules.conv(f"{key}.se.conv_expand", f"{name}/squeeze/expand"),
        *modules.conv_norm(f"{key}.{projection}", f"{key}.{norms}", f"{name}/project"),
    ]


def table_rows(key: str, name: str) -> list[Rule]:
    """Returns rows for a geffnet model under `key`; its `bn2`, the norm after the head, has none."""
    return [
        *modules.conv_norm(f"{key}.conv_stem", f"{key}.bn1", f"{name}/stem"),
        *(
            rule
            for i, stage in enumerate(STAGES)
            for j in range(stage.blocks)
            for rule in _block(f"{key}.blocks.{i}.{j}", f"{name}/stage_{i}_{j}", stage.expand > 1)
        ),
        *modules.conv(f"{key}.conv_head", f"{name}/head", bias=False),
    ]
