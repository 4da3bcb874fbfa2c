"""CharNet with Hourglass-88 (arXiv 1910.07954): words and characters on a quarter of the photo's grid.

Two hourglasses, one after the other, feed three heads: where words are, where characters are, and which character it
is. Source of the architecture: NVlabs/prismer, experts/ocr_detection/charnet/modeling/model.py and
backbone/hourglass.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.experts.convolution import ConvNorm
from prismer_jax.towers.stem import resize
from prismer_jax.typing import Array, Float, typed
from prismer_jax.weights import modules, rules
from prismer_jax.weights.rules import Rule

STRIDE = 4  # pixels of the photo on a side of a cell of the maps
CHANNELS = (256, 256, 256, 512)  # at the hourglass's four scales, fine to coarse
HEAD = 128  # channels of the heads
CLASSES = 68  # characters
REACH = 10  # unit, in cells, of the distances to a box's sides


def conv(features: int, stride: int = 1, **kwargs: Any) -> ConvNorm:
    """Convolves 3x3, without bias."""
    return ConvNorm(features, 3, stride, 1, bias=False, **kwargs)


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside a third one where channels or size change."""

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W {self.features}"]:
        y = jax.nn.relu(conv(self.features, self.stride, dtype=self.dtype, name="first")(x))
        y = conv(self.features, dtype=self.dtype, name="second")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, self.stride, dtype=self.dtype, name="skip")(x)
        return jax.nn.relu(x + y)


class Hourglass(nn.Module):
    """Looks at half the size, there with an hourglass of one scale less, and adds the result to what it sees itself.

    Attributes:
      channels: at each scale, fine to coarse; two scales are the innermost hourglass.
    """

    channels: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        residual = functools.partial(Residual, dtype=self.dtype)
        fine, coarse = self.channels[:2]
        same = x
        for i in range(2):
            same = residual(fine, name=f"same_{i}")(same)
        low = nn.max_pool(x, (2, 2), (2, 2))
        for i in range(2):
            low = residual(coarse, name=f"down_{i}")(low)
        if len(self.channels) > 2:
            low = Hourglass(self.channels[1:], self.dtype, name="inner")(low)
        else:
            for i in range(2):
                low = residual(coarse, name=f"inner_{i}")(low)
        for i, features in enumerate((coarse, fine)):
            low = residual(features, name=f"up_{i}")(low)
        return resize(low, x.shape[1:3]) + same


class Detector(nn.Module):
    """Predicts in every cell the logits of nothing and of a box, distances to its sides and, if asked, its angle."""

    angle: bool
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b h w _"]]:
        x = jax.nn.relu(conv(HEAD, dtype=self.dtype, name="shared")(x))
        score = jax.nn.relu(conv(HEAD, dtype=self.dtype, name="score_map")(x))
        box = jax.nn.relu(conv(HEAD, dtype=self.dtype, name="box_map")(x))
        maps = {"score": predict(2, "score", score), "sides": REACH * jax.nn.relu(predict(4, "sides", box))}
        return {**maps, "angle": predict(1, "angle", box)} if self.angle else maps


def predict(features: int, name: str, x: Array) -> Array:
    """Convolves 1x1 in float32 whatever the network computes in: bfloat16 makes too many scores equal."""
    return nn.Conv(features, (1, 1), name=name)(x.astype(jnp.float32))


class CharNet(nn.Module):
    """The network.

    Attributes:
      stacks: hourglasses, one after the other.
      channels: of each at its scales.
    """

    stacks: int = 2
    channels: Sequence[int] = CHANNELS
    classes: int = CLASSES
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b gh gw _"]]:
        """Returns maps of one cell for 4x4 pixels, in float32.

        They are word_score [2] and char_score [2] (logits of nothing and something), word_sides [4] and char_sides [4]
        (distances from the cell to top, bottom, left and right, in cells), word_angle [1] (radians), and char_class
        [classes] (logits).

        Args:
          x: red, green, blue, normalised by ImageNet's mean and deviation; sides are multiples of 32.
        """
        x = ConvNorm(128, 7, 2, 3, bias=False, dtype=self.dtype, name="first")(x.astype(self.dtype))
        x = Residual(self.channels[0], 2, self.dtype, name="start")(jax.nn.relu(x))
        for i in range(self.stacks):
            x = Hourglass(self.channels, self.dtype, name=f"hourglass_{i}")(x)
        outputs = {}
        for kind in ("word", "char"):
            maps = Detector(kind == "word", self.dtype, name=kind)(x)
            outputs |= {f"{kind}_{name}": value for name, value in maps.items()}
        for i in range(3):
            x = jax.nn.relu(conv(HEAD, dtype=self.dtype, name=f"reader_{i}")(x))
        return {**outputs, "char_class": predict(self.classes, "char_class", x)}


def _residual(key: str, name: str) -> list[Rule]:
    parts = (("conv_1", "first"), ("conv_2", "second"), ("skip", "skip"))
    return [
        rule
        for theirs, ours in parts
        for rule in modules.conv_norm(f"{key}.{theirs}.0", f"{key}.{theirs}.1", f"{name}/{ours}")
    ]


def _hourglass(key: str, name: str, scales: int) -> list[Rule]:
    parts = [("up_1", "same"), ("low_1", "down"), ("low_3", "up"), *([("low_2", "inner")] if scales == 2 else [])]
    all_rules = [rule for k, n in parts for i in range(2) for rule in _residual(f"{key}.{k}.{i}", f"{name}/{n}_{i}")]
    return all_rules if scales == 2 else [*all_rules, *_hourglass(f"{key}.low_2", f"{name}/inner", scales - 1)]


def _rules() -> list[Rule]:
    all_rules = [*modules.conv_norm("backbone.pre.0", "backbone.pre.1", "first"), *_residual("backbone.pre.3", "start")]
    for i in range(2):
        all_rules += _hourglass(f"backbone.hourglass_blocks.{i}", f"hourglass_{i}", len(CHANNELS))
    for kind, full in (("word", "word"), ("char", "character")):
        detector = f"{kind}_detector"
        for theirs, ours in (
            (f"{full}_det_conv_final", "shared"),
            (f"{kind}_fg_feat", "score_map"),
            (f"{kind}_regression_feat", "box_map"),
        ):
            all_rules += modules.conv_norm(f"{detector}.{theirs}.conv", f"{detector}.{theirs}.bn", f"{kind}/{ours}")
        for theirs, ours in ((f"{kind}_fg_pred", "score"), (f"{kind}_tblr_pred", "sides"), ("orient_pred", "angle")):
            all_rules += modules.conv(f"{detector}.{theirs}", f"{kind}/{ours}")
    for i in range(3):
        all_rules += modules.conv_norm(f"char_recognizer.body.{i}.conv", f"char_recognizer.body.{i}.bn", f"reader_{i}")
    return [*all_rules, *modules.conv("char_recognizer.classifier", "char_class")]


TABLE = rules.Table(rules=tuple(_rules()))
