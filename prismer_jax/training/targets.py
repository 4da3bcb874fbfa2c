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

from prismer_jax.datasets.checks import check_taught
from prismer_jax.errors import UserError
from prismer_jax.labels import select
from prismer_jax.losses import Costs, Forward, Loss
from prismer_jax.towers import layers
from prismer_jax.towers.label_costs import map_costs, predicted_channels
from prismer_jax.towers.label_lookup import label_tables
from prismer_jax.typing import Array, Float, typed

PARAMS = "targets"  # the part of the parameters that the heads have
CELLS = 2  # of the map on a side of a patch


class Heads(nn.Module):
    """A linear head for each expert: a patch's token -> what stands in its cells, numbers or a vector to look up."""

    experts: tuple[str, ...]

    @nn.compact
    @typed
    def __call__(self, patches: Float[Array, "b n d"]) -> dict[str, Float[Array, "b h w c"]]:
        side = math.isqrt(patches.shape[1])
        maps = {}
        for name in self.experts:
            x = layers.Dense(predicted_channels(name) * CELLS**2, name=name)(patches.astype(jnp.float32))
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


def check_labels(mixture: Sequence[Mapping[str, Any]], cfg: Mapping[str, Any], model: Any) -> None:
    """Checks that there are labels of each kind that a student is to learn, or that `config.targets` teaches."""
    targets = cfg.get("targets")
    kinds = select(targets.get("experts", "all")) if targets else ()
    check_taught(mixture, [*getattr(model, "kinds", ()), *kinds])
