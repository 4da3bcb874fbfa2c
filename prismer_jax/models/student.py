"""A student of the experts: one small network that makes all their label maps of a photo at once.

A vision transformer sees the photo in patches; one slim trunk doubles its grid again and again, looking at the photo's
own pixels each time, and a linear layer says what stands in each cell: a number (depth, edges), a normal, or the vector
of a class or word. It learns from photos that the experts have labelled, is a family of prismer_jax.models like the
others while it is trained, and labels photos as experts.student. (What it learns is that of Multi-Task Self-Training,
arXiv 2108.11353; a trunk that doubles by sub-pixel convolutions: arXiv 1609.05158.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.errors import UserError, choose
from prismer_jax.labels import EXPERTS, select
from prismer_jax.losses import Costs, Forward
from prismer_jax.towers import layers
from prismer_jax.towers.label_costs import map_costs, predicted_channels, unit
from prismer_jax.towers.label_lookup import label_tables
from prismer_jax.towers.vit import ViT
from prismer_jax.typing import Array, Float, typed

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(image_size=32, patch_size=8, width=32, layers=1, heads=2, trunk=16, doublings=1),  # of tests
    "small": dict(image_size=96, patch_size=8, width=128, layers=4, heads=4, trunk=48, doublings=2),  # of the scenes
    "base": dict(image_size=480, patch_size=16, width=256, layers=8, heads=4, trunk=64, doublings=2),
}
FREEZE: dict[str, tuple[str, ...]] = {"none": ()}
RESIZE = {"params/vit/position_embedding": lambda x, shape: layers.resize_positions(x, (round(shape[0] ** 0.5),) * 2)}
WITHOUT = ("encode", "prefill", "extend", "vocab_size")  # of the interface: it reads and writes no text
BACKGROUND_NEAR = 0.5  # cosine with the background's vector above which there is no word


class Student(nn.Module):
    """The network. All fields are hashable, so is the module.

    Attributes:
      kinds: names of prismer_jax.labels.EXPERTS whose maps it makes.
      image_size: side of the square photos.
      patch_size, width, layers, heads: of the vision transformer.
      trunk: channels of what is made of its tokens.
      doublings: of the grid of patches; a cell of the maps is patch_size / 2^doublings pixels wide.
      classes: {kind: names}, where a data set has its own.
      dtype: of the computation; what it predicts is float32.
    """

    kinds: tuple[str, ...]
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    trunk: int
    doublings: int
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    rngs = ()
    experts = ()  # it reads no labels

    @nn.compact
    @typed
    def __call__(self, batch: Mapping[str, Any], train: bool = False) -> dict[str, Float[Array, "b h w c"]]:
        """Returns what it predicts of each kind: numbers scaled to [-1, 1], a normal, or a vector to look up.

        Raises:
          UserError: the photos have another size than `image_size`.
        """
        if (size := batch["image"].shape[1:3]) != (self.image_size,) * 2:
            wanted = self.image_size
            raise UserError(
                f"The student sees {wanted}x{wanted} pixels, not {size[1]}x{size[0]}: resize({wanted}) in pp."
            )
        dtype = jnp.dtype(self.dtype)
        image = jnp.asarray(batch["image"], dtype) / 127.5 - 1
        sizes = self.image_size, self.patch_size, self.width, self.layers, self.heads
        tokens = ViT(*sizes, 4 * self.width, dtype=dtype, name="vit")(image)
        side, grid = self.patch_size, self.image_size // self.patch_size
        x = rearrange(layers.Dense(self.trunk, dtype, name="reduce")(tokens), "b (h w) c -> b h w c", h=grid)
        for i in range(self.doublings):
            side //= 2
            x = layers.Dense(4 * self.trunk, dtype, name=f"double_{i}")(x)
            x = rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
            pixels = rearrange(image, "b (h p) (w q) c -> b h w (p q c)", p=side, q=side)
            x = jax.nn.gelu(x + layers.Dense(self.trunk, dtype, name=f"pixels_{i}")(pixels))
            x = x + jax.nn.gelu(nn.Conv(self.trunk, (3, 3), dtype=dtype, name=f"conv_{i}")(x))
        channels = [predicted_channels(kind) for kind in self.kinds]
        x = layers.Dense(sum(channels), name="maps")(x.astype(jnp.float32))
        return dict(zip(self.kinds, jnp.split(x, np.cumsum(channels)[:-1], -1), strict=True))

    def costs(self, batch: Mapping[str, Any], train: bool = False) -> dict[str, tuple[Array, Array]]:
        """Returns for each kind what its map costs each photo, and 1 where the photo has one, else 0: both [b]."""
        tables = label_tables(self.kinds, self.classes)
        return {kind: map_costs(kind, maps, batch, tables) for kind, maps in self(batch, train).items()}

    def read(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Returns what each map says, for `experts.student` to make labels of: numbers as they are, and ids.

        Of classes the one whose vector is nearest, int16 [b h w], -1 for the background. Of words the unit vectors,
        [b h w 64], which are 0 where that of the background is as near as BACKGROUND_NEAR.
        """
        tables, read = label_tables(self.kinds, self.classes), {}
        for kind, maps in self(batch).items():
            if EXPERTS[kind].storage != "ids":
                read[kind] = maps
            elif EXPERTS[kind].embed == "words":
                words = unit(maps)
                nothing = words @ unit(jnp.asarray(tables[kind][-1])) > BACKGROUND_NEAR
                read[kind] = jnp.where(nothing[..., None], 0.0, words).astype(jnp.float16)
            else:
                nearest = (unit(maps) @ unit(jnp.asarray(tables[kind])).T).argmax(-1)
                read[kind] = jnp.where(nearest < len(tables[kind]) - 1, nearest, -1).astype(jnp.int16)
        return read

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns fresh variables {'params'}."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.uint8)
        return {"params": self.init(rng, {"image": image})["params"]}


def build(
    variant: str = "base",
    kinds: str | Sequence[str] = "all",
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    tokenizer: Any = None,
    **fields: Any,
) -> Student:
    """Returns a student of a variant's sizes, or of those in `fields`.

    Args:
      kinds: of labels, as in labels.select.
      classes: {kind: names}, where a data set has its own.
      tokenizer: is of no use to it.

    Raises:
      UserError: an unknown variant, kind or field, none at all, or sizes that do not fit one another.
    """
    names = select(kinds)
    if not names:
        raise UserError("config.model: kinds='none' leaves a student nothing to learn. Name some.")
    sizes = {**choose("variant of the student", variant, VARIANTS), **fields}
    known = {field for field in Student.__dataclass_fields__ if field not in ("kinds", "classes", "parent", "name")}
    for field in sizes:
        choose("field of the student", field, dict.fromkeys(known))
    if sizes["image_size"] % sizes["patch_size"] or sizes["patch_size"] % 2 ** sizes["doublings"]:
        raise UserError(
            f"config.model: image_size={sizes['image_size']} must be a multiple of patch_size={sizes['patch_size']}, "
            f"and that one of 2^doublings={2 ** sizes['doublings']}."
        )
    own = FrozenDict({kind: tuple(names) for kind, names in (classes or {}).items()})
    for kind in own:
        if choose("kind of labels", kind, EXPERTS).embed not in ("classes", "instances"):
            raise UserError(f"classes: {kind} has no classes; only segmentation and detection have.")
    return Student(kinds=names, classes=own, **sizes)


def label_maps(forward: Forward, batch: Mapping[str, Array], weight: float | Mapping[str, float] = 1.0) -> Costs:
    """What the maps cost that a model predicts: the sum over kinds as 'loss', and each kind by its name.

    Args:
      weight: of all kinds, or {kind: weight}; 1 where it has none.
    """
    parts = forward(batch, method="costs")
    total = 0.0
    for kind, (cost, there) in parts.items():
        total += (weight.get(kind, 1.0) if isinstance(weight, Mapping) else weight) * cost * there
    return {"loss": (total, jnp.ones_like(total)), **{k: (cost * there, there) for k, (cost, there) in parts.items()}}
