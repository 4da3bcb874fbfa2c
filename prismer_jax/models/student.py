"""A student of the experts: one small network that makes all their label maps of a photo at once.

Convolutions look at the photo in fine cells, a transformer at its patches, and a trunk doubles the grid of patches
again and meets on each grid what the convolutions saw there. A last convolution says what stands in each pixel, a
depth, a normal, or how dark it is as an edge; a linear layer says of each cell the vector of a class or word and the
arrow to its object's middle. It learns from photos that the experts have labelled, is a family of prismer_jax.models
like the others while it is trained, and labels photos as experts.student. (What it learns is that of Multi-Task
Self-Training, arXiv 2108.11353; skips: U-Net, arXiv 1505.04597; doubling by sub-pixel convolutions: arXiv 1609.05158.)
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
from prismer_jax.labels import FEATURES as WORD_FEATURES  # a family's own FEATURES are regexes
from prismer_jax.losses import Costs, Forward
from prismer_jax.towers import layers, vit
from prismer_jax.towers.label_costs import ARROW, edge_costs, map_costs, middle_costs, places, predicted_channels, unit
from prismer_jax.towers.label_lookup import label_tables
from prismer_jax.typing import Array, Float, typed

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(image_size=32, patch_size=8, width=32, layers=1, heads=2, trunk=16, doublings=1),  # of tests
    "small": dict(image_size=96, patch_size=8, width=128, layers=4, heads=4, trunk=32, doublings=2),  # of the scenes
    "base": dict(image_size=480, patch_size=16, width=256, layers=8, heads=4, trunk=64, doublings=2),
}
FREEZE: dict[str, tuple[str, ...]] = {"none": ()}
RESIZE = {"params/position_embedding": lambda x, shape: layers.resize_positions(x, (round(shape[0] ** 0.5),) * 2)}
WITHOUT = ("encode", "prefill", "extend", "vocab_size")  # of the interface: it reads and writes no text
BACKGROUND_NEAR = 0.5  # cosine with the background's vector above which there is no word


class Block(nn.Module):
    """What a cell and its eight neighbours say together is added to it."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        width = x.shape[-1]
        h = nn.Conv(width, (3, 3), dtype=self.dtype, name="conv")(layers.LayerNorm(name="norm")(x))
        return x + layers.Dense(width, self.dtype, name="out")(jax.nn.gelu(h))


class StudentNetwork(nn.Module):
    """The network. All fields are hashable, so is the module.

    Attributes:
      kinds: names of prismer_jax.labels.EXPERTS whose maps it makes.
      image_size: side of the square photos.
      patch_size, width, layers, heads: of the transformer.
      trunk: channels of a cell of the finest grid; each coarser grid has twice as many.
      doublings: of the grid of patches; a cell of the finest grid is patch_size / 2^doublings pixels wide.
      blocks: of convolutions on each grid, on the way down and on the way up.
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
    blocks: int = 1
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    rngs = ()
    experts = ()  # it reads no labels

    @nn.compact
    @typed
    def __call__(self, batch: Mapping[str, Any], train: bool = False) -> dict[str, Float[Array, "b h w c"]]:
        """Returns what it predicts of each kind: depth in [-1, 1], a normal, an edge's logit, or a vector to look up.

        Depth, normals and edges are of each pixel, vectors of each cell. A logit is that of white, of which an edge
        has none.

        Raises:
          UserError: the photos have another size than `image_size`.
        """
        if (size := batch["image"].shape[1:3]) != (self.image_size,) * 2:
            side = self.image_size
            raise UserError(f"The student sees {side}x{side} pixels, not {size[1]}x{size[0]}: resize({side}) in pp.")
        dtype, cell = jnp.dtype(self.dtype), self.patch_size >> self.doublings
        widths = [self.trunk << level for level in range(self.doublings)]

        def dense(features: int, x: Array, name: str) -> Array:
            return layers.Dense(features, dtype, name=name)(x)

        def look(x: Array, name: str) -> Array:
            for i in range(self.blocks):
                x = Block(dtype, name=f"{name}_{i}")(x)
            return x

        # Down: what is seen on each grid is kept for the way up.
        x, seen = _join(jnp.asarray(batch["image"], dtype) / 127.5 - 1, cell), []
        for level, features in enumerate(widths):
            seen.append(look(dense(features, x, f"down_{level}"), f"seen_{level}"))
            x = _join(seen[-1], 2)

        # The coarsest grid is that of the patches, of which each sees all.
        x = dense(self.width, x, "patches")
        x = rearrange(x, "b h w c -> b (h w) c")
        x = x + self.param("position_embedding", nn.initializers.normal(0.02), (x.shape[1], self.width)).astype(dtype)
        blocks = layers.stack(vit.Block, self.layers, "none", broadcast=0)
        x, _ = blocks(self.heads, 4 * self.width, "gelu_tanh", 1e-6, 0.0, dtype=dtype, name="blocks")(x)
        x = rearrange(layers.LayerNorm(name="norm")(x), "b (h w) c -> b h w c", h=self.image_size // self.patch_size)

        # Up.
        for level, features in reversed(list(enumerate(widths))):
            x = seen[level] + _split(dense(4 * features, x, f"up_{level}"), 2)
            x = look(x, f"said_{level}")
        x = layers.LayerNorm(name="norm_maps")(x).astype(jnp.float32)
        of_cells = tuple(kind for kind in self.kinds if EXPERTS[kind].storage == "ids")
        of_pixels = tuple(kind for kind in self.kinds if kind not in of_cells)
        maps = {}
        if of_cells:
            maps |= _parts(of_cells, layers.Dense(_total(of_cells), name="maps")(x))
        if of_pixels:  # each from its neighbours, too, so that lines go on from cell to cell
            x = _split(layers.Dense(self.trunk // 4 * cell**2, name="up_pixels")(x), cell)
            x = nn.Conv(_total(of_pixels), (3, 3), name="pixel_maps")(jax.nn.gelu(x))
            maps |= _parts(of_pixels, x)
        return maps

    def costs(self, batch: Mapping[str, Any], train: bool = False) -> dict[str, tuple[Array, Array]]:
        """Returns for each kind what its map costs each photo, and 1 where the photo has one, else 0: both [b]."""
        tables, costs = label_tables(self.kinds, self.classes), {}
        for kind, maps in self(batch, train).items():
            cost, there = map_costs(kind, maps[..., : predicted_channels(kind)], batch, tables)
            if kind == "edge":
                cost = edge_costs(maps, jnp.asarray(batch[EXPERTS[kind].key]))
            if EXPERTS[kind].embed == "instances":
                cost += middle_costs(maps[..., WORD_FEATURES:], batch[EXPERTS[kind].key])
            costs[kind] = cost, there
        return costs

    def read(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Returns what each map says, for `experts.student` to make labels of: numbers as they are, and ids.

        Of classes the one whose vector is nearest, int16 [b h w], -1 for the background. Of instances [b h w 3]: the
        class, and row and column of the cell in the middle of the instance. Of words the unit vectors, [b h w 64],
        which are 0 where that of the background is as near as BACKGROUND_NEAR.
        """
        tables, read = label_tables(self.kinds, self.classes), {}
        for kind, maps in self(batch).items():
            if EXPERTS[kind].storage != "ids":
                read[kind] = jnp.tanh(maps / 2) if kind == "edge" else maps  # of a logit, 2 * probability - 1
            elif EXPERTS[kind].embed == "words":
                words = unit(maps)
                nothing = words @ unit(jnp.asarray(tables[kind][-1])) > BACKGROUND_NEAR
                read[kind] = jnp.where(nothing[..., None], 0.0, words).astype(jnp.float16)
            else:
                nearest = (unit(maps[..., :WORD_FEATURES]) @ unit(jnp.asarray(tables[kind])).T).argmax(-1)
                read[kind] = jnp.where(nearest < len(tables[kind]) - 1, nearest, -1).astype(jnp.int16)
                if EXPERTS[kind].embed == "instances":
                    size = np.array(maps.shape[1:3])
                    ends = (places(*size) + ARROW * maps[..., WORD_FEATURES:]) * size
                    ends = jnp.clip(ends, 0, size - 1).astype(jnp.int16)
                    read[kind] = jnp.concatenate([read[kind][..., None], ends], -1)
        return read

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns fresh variables {'params'}."""
        image = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.uint8)
        return {"params": self.init(rng, {"image": image})["params"]}


def _channels(kind: str) -> int:
    """Returns how many channels a pixel or cell has: of an instance also an arrow to its middle."""
    return predicted_channels(kind) + 2 * (EXPERTS[kind].embed == "instances")


def _total(kinds: Sequence[str]) -> int:
    """Returns how many channels the maps of these kinds have together."""
    return sum(_channels(kind) for kind in kinds)


def _parts(kinds: Sequence[str], x: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b h w d"]]:
    """Returns the map of each kind, from those of all as one."""
    ends = np.cumsum([_channels(kind) for kind in kinds])
    return dict(zip(kinds, jnp.split(x, ends[:-1], -1), strict=True))


def _join(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b H W d"]:
    """Makes one cell of side x side."""
    return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=side, q=side)


def _split(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b H W d"]:
    """Makes side x side cells of one."""
    return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=side, q=side)


def build(
    variant: str = "base",
    kinds: str | Sequence[str] = "all",
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    tokenizer: Any = None,
    **fields: Any,
) -> StudentNetwork:
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
    choices = dict.fromkeys(StudentNetwork.__dataclass_fields__.keys() - {"kinds", "classes", "parent", "name"})
    for field in sizes:
        choose("field of the student", field, choices)
    size, patch, unit = sizes["image_size"], sizes["patch_size"], 2 ** sizes["doublings"]
    if not 0 < patch <= size or size % patch or patch % unit:
        raise UserError(
            f"config.model: image_size={size} must be a multiple of patch_size={patch}, "
            f"and that one of 2^doublings={unit}, all above 0."
        )
    own = FrozenDict({kind: tuple(names) for kind, names in (classes or {}).items()})
    for kind in own:
        if choose("kind of labels", kind, EXPERTS).embed not in ("classes", "instances"):
            raise UserError(f"classes: {kind} has no classes; only segmentation and detection have.")
    return StudentNetwork(kinds=names, classes=own, **sizes)


def label_maps(forward: Forward, batch: Mapping[str, Array], weight: float | Mapping[str, float] = 1.0) -> Costs:
    """Returns what the maps cost that a model predicts: the sum over kinds as 'loss', and each kind by its name.

    Args:
      weight: of all kinds, or {kind: weight}; 1 where it has none.
    """
    parts = forward(batch, method="costs")
    total = 0.0
    for kind, (cost, there) in parts.items():
        total += (weight.get(kind, 1.0) if isinstance(weight, Mapping) else weight) * cost * there
    return {"loss": (total, jnp.ones_like(total)), **{k: (cost * there, there) for k, (cost, there) in parts.items()}}
