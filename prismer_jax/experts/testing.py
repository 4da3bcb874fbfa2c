"""Experts of a few parameters, under real names, for the tests of what carries the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax.errors import BadSample
from prismer_jax.experts import layers
from prismer_jax.experts.expert import Arrays, Expert, Label, SquareExpert
from prismer_jax.typing import Array
from prismer_jax.weights import modules, rules


class Net(nn.Module):
    """One dense layer on every pixel."""

    dtype: Any = jnp.float32
    channels: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.channels, dtype=self.dtype, name="out")(x)


class ToyDepth(SquareExpert):
    """The sigmoid of a weighted sum of the colours."""

    name, file = "depth", "toy_depth.pt"
    table = rules.Table(rules=tuple(modules.dense("head", "out")), ignored=(r"old\..*",))
    network = Net
    size = (6, 8)

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        image = batch["image"].astype(self.dtype) / 255
        return {"bright": jax.nn.sigmoid(self.module.apply(variables, image)[..., 0]).astype(jnp.float32)}

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        return Label(layers.to_bytes(layers.resize_map(output["bright"], size))[..., None])


class ToyDetection(Expert):
    """Keeps the photos' proportions; one instance of class 7 where depth, which it needs, is more than half."""

    name, file, needs = "obj_detection", "toy_detection.pt", ("depth",)
    table = rules.Table(rules=tuple(modules.dense("roi.head", "out")))
    network = Net

    def __init__(self, dtype: Any = jnp.float32) -> None:
        super().__init__(dtype, channels=2)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        short, long = sorted((height, width))
        if long > 100 * short:
            raise BadSample(f"{height}x{width} pixels are too narrow to detect anything.")
        return max(1, height * 16 // long), max(1, width * 16 // long)

    def prepare(self, photo: np.ndarray) -> Arrays:
        return {"image": layers.resize_photo(photo, self.shape(*photo.shape[:2]))}

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {"scores": self.module.apply(variables, batch["image"].astype(self.dtype)).mean((1, 2))}

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        return Label(np.where(needed["depth"].map > 127, 0, 255).astype(np.uint8), classes=[7])


TOYS: dict[str, type[Expert]] = {toy.name: toy for toy in (ToyDepth, ToyDetection)}
