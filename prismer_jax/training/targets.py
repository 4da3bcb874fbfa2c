"""Experts as teachers: `config.targets` has the vision tower predict the label maps, in training and nowhere else.

    config.targets = dict(experts="depth+seg_coco", weight=0.5)

A linear head an expert reads the token of each patch and predicts CELLS x CELLS cells of the map there. What the heads
are charged for is added to the loss, whose own part is then reported as `text`; their parameters, params/targets, are
left behind when a checkpoint is used. The photo's own tokens come to hold what the experts know, and the model that is
used costs what it did before. (Prismer, arXiv 2303.02506, reads the maps instead. Targets of this kind: Multi-Task
Self-Training, arXiv 2108.11353.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.errors import UserError
from prismer_jax.labels import CLASSES_KEY, EXPERTS, FEATURES, WORDS_KEY, select
from prismer_jax.losses import Costs, Forward, Loss
from prismer_jax.towers import layers
from prismer_jax.towers.label_lookup import features, label_tables
from prismer_jax.typing import Array, Float, UInt8, typed

PARAMS = "targets"  # the part of the parameters that the heads have
CELLS = 2  # of the map on a side of a patch
TEMPERATURE = 0.1  # of the cosines with the vectors of classes and words
WORDS = 8  # of each photo that a cell's word is told from


class Heads(nn.Module):
    """A linear head for each expert: a patch's token -> what stands in its cells, numbers or a vector to look up."""

    experts: tuple[str, ...]

    @nn.compact
    @typed
    def __call__(self, patches: Float[Array, "b n d"]) -> dict[str, Float[Array, "b h w c"]]:
        side = math.isqrt(patches.shape[1])
        maps = {}
        for name in self.experts:
            channels = FEATURES if EXPERTS[name].storage == "ids" else EXPERTS[name].channels
            x = layers.Dense(channels * CELLS**2, name=name)(patches.astype(jnp.float32))
            maps[name] = rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=side, p=CELLS, q=CELLS)
        return maps


class Targets(NamedTuple):
    """What `config.targets` says of a model in training.

    Attributes:
      model: what is trained.
      heads: what predicts the maps.
      weights: {expert: of its cost in the loss}.
      width: of the patches' tokens.
      tables: of `label_tables`, for experts whose maps hold ids of classes.
    """

    model: Any
    heads: Heads
    weights: Mapping[str, float]
    width: int
    tables: Mapping[str, np.ndarray]

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns fresh variables of the model, and the heads' parameters."""
        variables = self.model.init_variables(rng)
        heads = self.heads.init(jax.random.fold_in(rng, 1), jnp.zeros((1, 1, self.width)))["params"]
        return {**variables, "params": {**variables["params"], PARAMS: heads}}

    def trained(self, frozen: Sequence[str]) -> tuple[str, ...]:
        """Returns regexes of frozen parameters that leave the heads out, which are fresh in every training."""
        return tuple(rf"(?!{PARAMS}/)(?:{pattern})" for pattern in frozen)

    def taught(self, loss: Loss) -> Loss:
        """Returns a loss that also charges the maps that the heads predict, and names the cost of each expert."""

        def both(forward: Forward, batch: Mapping[str, Array]) -> Costs:
            costs = loss(forward, batch)
            if not forward.patches:
                raise UserError("config.targets: the vision tower sees no photo: train with photos, without features.")
            (patches,) = jax.tree.leaves(forward.patches)[-1:]
            predicted = self.heads.apply({"params": forward.variables["params"][PARAMS]}, patches)
            total, rows = costs["text"] = costs["loss"]
            for name, maps in predicted.items():
                cost, there = map_costs(name, maps, batch, self.tables)
                costs[f"targets/{name}"] = cost * there, there
                total += self.weights[name] * cost * there * rows
            return {**costs, "loss": (total, rows)}

        return both


def make(model: Any, experts: str | Sequence[str] = "all", weight: float | Mapping[str, float] = 0.5) -> Targets:
    """Returns what `config.targets` says.

    Args:
      model: what is trained; its vision tower sows the tokens of its patches in the collection 'patches'.
      experts: as in labels.select; whose maps the tokens are to predict.
      weight: of an expert's cost in the loss, or {expert: weight}.

    Raises:
      UserError: there is no such expert, none at all, or the model has no such tower.
    """
    names = select(experts)
    if not names:
        raise UserError("config.targets: experts='none' teaches nothing. Name some, or leave config.targets out.")
    weights = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(names, float(weight))
    if set(weights) != set(names):
        raise UserError(f"config.targets: weight has {', '.join(sorted(weights))}; the experts are {', '.join(names)}.")
    size = model.image_size

    def sown(rng: Array) -> Any:
        image = {"image": jnp.zeros((1, size, size, 3), jnp.uint8)}
        return model.apply(model.init_variables(rng), image, method="encode", mutable=["patches"])[1]

    tokens = jax.tree.leaves(jax.eval_shape(sown, jax.random.key(0)))
    if len(tokens) != 1 or math.isqrt(tokens[0].shape[1]) ** 2 != tokens[0].shape[1]:
        raise UserError(f"config.targets: {type(model).__name__} has no vision tower with a square of patches.")
    tables = label_tables(names, getattr(model, "classes", {}))
    return Targets(model, Heads(names), weights, tokens[0].shape[-1], tables)


def map_costs(
    expert: str, predicted: Float[Array, "n h w c"], batch: Mapping[str, Any], tables: Mapping[str, np.ndarray]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Returns what a prediction of an expert's maps costs each row of a batch, and 1 where it has a map, else 0.

    A row of several tiles, whose maps are [b m h w c], has the mean over those that have a map. An empty map is none:
    what an expert was not asked about is not taught as the background.
    """
    label, tables = batch[EXPERTS[expert].key], jax.tree.map(jnp.asarray, dict(tables))
    rows, tiles = len(label), label.shape[1] if label.ndim == 5 else 1
    label = label.reshape(-1, *label.shape[-3:])
    there = (label != EXPERTS[expert].fill).any((1, 2, 3))
    if EXPERTS[expert].storage == "ids":
        own = {
            k: _of_tiles(batch[k], rows, tiles, rank) for k, rank in ((CLASSES_KEY, 1), (WORDS_KEY, 2)) if k in batch
        }
        cost = _cost_of_ids(expert, predicted, label, own, tables)
    elif expert == "normal":
        cost = _angle(predicted, label)
    else:
        value = features(expert, label, batch, tables)
        cost = jnp.square(predicted - _resize(value, predicted.shape[1:3])).mean((1, 2, 3))
    cost, there = cost.reshape(rows, tiles), there.reshape(rows, tiles).astype(jnp.float32)
    return (cost * there).sum(1) / jnp.maximum(there.sum(1), 1), there.max(1)


@typed
def _angle(predicted: Float[Array, "n h w 3"], label: UInt8[Array, "n H W 3"]) -> Float[Array, " n"]:
    """Returns 1 - cosine of the angle of predicted and labelled normals, on average where there is a normal."""
    known = (label != 0).any(-1, keepdims=True).astype(jnp.float32)  # a sky has none
    normal = _resize((label.astype(jnp.float32) / 127.5 - 1) * known, predicted.shape[1:3])
    known = _resize(known, predicted.shape[1:3])[..., 0]
    cosine = (_unit(predicted) * _unit(normal)).sum(-1)
    return ((1 - cosine) * known).sum((1, 2)) / jnp.maximum(known.sum((1, 2)), 1)


def _cost_of_ids(
    expert: str, predicted: Array, label: Array, own: Mapping[str, Array], tables: Mapping[str, Array]
) -> Float[Array, " n"]:
    """Returns the cross-entropy of a cell's class or word by its vector's cosine with theirs.

    What is there weighs as much as the background, of which there may be much more. A word is told from the background
    and from the first WORDS of each photo of the batch.
    """
    count, h, w = predicted.shape[:3]
    ids, rows = features(expert, label, own, tables)
    ids = ids[:, (np.arange(h) * 2 + 1) * ids.shape[1] // (2 * h)]  # the pixel in the middle of a cell
    ids = ids[:, :, (np.arange(w) * 2 + 1) * ids.shape[2] // (2 * w)].reshape(count, -1, 1).astype(jnp.int32)
    right = jnp.take_along_axis(jnp.broadcast_to(rows, (count, *rows.shape[1:])), ids, 1).reshape(count, h, w, -1)
    vectors = tables[expert]  # the background's is the last
    if EXPERTS[expert].embed == "words":
        vectors = jnp.concatenate([rows[:, :WORDS].reshape(-1, FEATURES), vectors[-1:]])
    there = (vectors != 0).any(-1)
    cosines = jnp.where(there, _unit(predicted) @ _unit(vectors).T / TEMPERATURE, -jnp.inf)
    equal = there & (_unit(right) @ _unit(vectors).T > 1 - 1e-3)  # also another photo's vector of the same word
    known, nothing = equal.any(-1), equal[..., -1]
    chosen = jnp.where(equal | ~known[..., None], cosines, -jnp.inf)
    cost = jax.nn.logsumexp(cosines, -1) - jax.nn.logsumexp(chosen, -1)
    masks = [mask.astype(jnp.float32) for mask in (nothing, known & ~nothing)]
    means = [(cost * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1) for mask in masks]
    return sum(means) / jnp.maximum(sum(mask.max((1, 2)) for mask in masks), 1)


def _of_tiles(x: Array, rows: int, tiles: int, rank: int) -> Array:
    """Returns the tables [rows * tiles ...] of each tile, from those of each row or of each tile."""
    return jnp.repeat(x, tiles, 0) if x.ndim == rank + 1 else x.reshape(rows * tiles, *x.shape[2:])


def _resize(x: Float[Array, "n h w c"], size: tuple[int, int]) -> Float[Array, "n H W c"]:
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear")  # antialiased


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
