"""What a predicted label map costs beside an expert's own: of numbers by regression, of ids by the vector of each.

Edges that are said of each pixel are decisions, and cost what decisions do. Who predicts a map is another matter:
heads on a vision tower (training.targets), or a whole network (models.student).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS, FEATURES, MAX_IDS, WORDS_KEY
from prismer_jax.towers.label_lookup import features
from prismer_jax.typing import Array, Float, UInt8, typed

TEMPERATURE = 0.1  # of the cosines with the vectors of classes and words
WORDS = 8  # of each photo that a cell's word is told from
ARROW = 0.1  # of the photo's side: what an arrow of length 1 spans
SHORTEST = 0.5  # length of a normal; what is shorter is none


def predicted_channels(expert: str) -> int:
    """Returns how many channels a predicted map has: the vector to look up where the label holds ids."""
    return FEATURES if EXPERTS[expert].storage == "ids" else EXPERTS[expert].channels


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
    """Returns half the squared distance of predicted and labelled normals, on average where the label says something.

    Of unit vectors that is 1 - cosine of their angle. A grey pixel, as a sky has, is no direction: its normal is 0, and
    so shall be the predicted one. A black one says nothing.
    """
    has_direction = (label != 0).any(-1, keepdims=True).astype(jnp.float32)
    normal = label.astype(jnp.float32) / 127.5 - 1
    length = jnp.sqrt(jnp.square(normal).sum(-1, keepdims=True))
    normal = jnp.where(length > SHORTEST, normal / jnp.maximum(length, SHORTEST), 0.0) * has_direction
    normal, has_direction = _resize(normal, predicted.shape[1:3]), _resize(has_direction, predicted.shape[1:3])
    cost = jnp.square(predicted - normal).sum(-1, keepdims=True) / 2 * has_direction
    return cost.sum((1, 2, 3)) / jnp.maximum(has_direction.sum((1, 2, 3)), 1)


def _cost_of_ids(
    expert: str, predicted: Array, label: Array, own: Mapping[str, Array], tables: Mapping[str, Array]
) -> Float[Array, " n"]:
    """Returns the cross-entropy of a cell's class or word by its vector's cosine with theirs.

    Every cell weighs the same, so that classes meet where the one becomes as likely as the other. Words, which cover
    next to nothing, weigh as much as the background. A word is told from the background and from the first WORDS of
    each photo of the batch. As there is no table of all words to look for the nearest in, the vector itself has to be
    right: 1 - its cosine with the word's, or with the background's, is added.
    """
    count, h, w = predicted.shape[:3]
    ids, rows = features(expert, label, own, tables)
    ids = _of_cells(ids, (h, w)).reshape(count, -1, 1)
    right = jnp.take_along_axis(jnp.broadcast_to(rows, (count, *rows.shape[1:])), ids, 1).reshape(count, h, w, -1)
    vectors = tables[expert]  # the background's is the last
    if EXPERTS[expert].embed == "words":
        vectors = jnp.concatenate([rows[:, :WORDS].reshape(-1, FEATURES), vectors[-1:]])
    there = (vectors != 0).any(-1)
    cosines = jnp.where(there, unit(predicted) @ unit(vectors).T / TEMPERATURE, -jnp.inf)
    equal = there & (unit(right) @ unit(vectors).T > 1 - 1e-3)  # also another photo's vector of the same word
    in_table, nothing = equal.any(-1), equal[..., -1]
    chosen = jnp.where(equal | ~in_table[..., None], cosines, -jnp.inf)
    cost = jax.nn.logsumexp(cosines, -1) - jax.nn.logsumexp(chosen, -1)
    if EXPERTS[expert].embed == "words":
        cost += 1 - (unit(predicted) * unit(right)).sum(-1)
    apart = (nothing, in_table & ~nothing) if EXPERTS[expert].embed == "words" else (in_table,)
    masks = [mask.astype(jnp.float32) for mask in apart]
    means = [(cost * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1) for mask in masks]
    return sum(means) / jnp.maximum(sum(mask.max((1, 2)) for mask in masks), 1)


@typed
def edge_costs(logits: Float[Array, "n h w 1"], label: UInt8[Array, "n H W 1"]) -> Float[Array, " n"]:
    """Returns the cross-entropy of each pixel's darkness, and the share of drawn and labelled lines that differs.

    A pixel is a decision, on a line or not. Where a line's place is unsure, squares and cross-entropy alone are least
    for a grey that no label has; the second part is least for lines as dark as the labels', where they are likeliest.
    That is Dice's coefficient, for labels that may be grey. Sources: Wang et al., arXiv 2303.16296; of crisp lines by
    both parts: Deng et al., arXiv 1807.10097.

    Args:
      logits: of white.
      label: 0 is dark.
    """
    exact = 1 - _resize(label.astype(jnp.float32) / 255, logits.shape[1:3])
    probability = jax.nn.sigmoid(-logits)
    entropy = jax.nn.softplus(logits) * exact + jax.nn.softplus(-logits) * (1 - exact)
    differ = jnp.abs(probability - exact).sum((1, 2, 3)) / jnp.maximum((probability + exact).sum((1, 2, 3)), 1)
    return entropy.mean((1, 2, 3)) + differ


@typed
def middle_costs(arrows: Float[Array, "n h w 2"], label: UInt8[Array, "n H W 1"]) -> Float[Array, " n"]:
    """Returns how far from the middle of its object a cell's arrow ends, in ARROWs, on average over cells of objects.

    By where the arrows end are objects told apart that touch. Source: Panoptic-DeepLab, arXiv 1911.10194.

    Args:
      arrows: (down, right), in ARROWs.
      label: ids of instances.
    """
    count, h, w = arrows.shape[:3]
    ids, at = _of_cells(label[..., 0], (h, w)), jnp.asarray(places(h, w))
    there = (ids != BACKGROUND).astype(jnp.float32)
    each = (ids + MAX_IDS * jnp.arange(count)[:, None, None]).reshape(-1)
    homogeneous = jnp.broadcast_to(jnp.concatenate([at, jnp.ones((h, w, 1))], -1), (count, h, w, 3)).reshape(-1, 3)
    sums = jax.ops.segment_sum(homogeneous, each, MAX_IDS * count)
    middles = (sums[:, :2] / jnp.maximum(sums[:, 2:], 1))[each].reshape(arrows.shape)
    missed = jnp.abs(arrows - (middles - at) / ARROW).sum(-1) * there
    return missed.sum((1, 2)) / jnp.maximum(there.sum((1, 2)), 1)


def places(h: int, w: int) -> Float[np.ndarray, "h w 2"]:
    """Returns where the middles of cells lie, (row, column), 0..1 of the photo."""
    rows, columns = (np.arange(h, dtype=np.float32) + 0.5) / h, (np.arange(w, dtype=np.float32) + 0.5) / w
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)


def _of_cells(ids: Array, size: tuple[int, int]) -> Array:
    """Returns the ids int32 [n h w] of the pixels in the middle of each cell."""
    (h, w), (height, width) = size, ids.shape[1:]
    rows, columns = (np.arange(h) * 2 + 1) * height // (2 * h), (np.arange(w) * 2 + 1) * width // (2 * w)
    return ids[:, rows][:, :, columns].astype(jnp.int32)


def _of_tiles(x: Array, rows: int, tiles: int, rank: int) -> Array:
    """Returns the tables [rows * tiles ...] of each tile, from those of each row or of each tile."""
    return jnp.repeat(x, tiles, 0) if x.ndim == rank + 1 else x.reshape(rows * tiles, *x.shape[2:])


def _resize(x: Float[Array, "n h w c"], size: tuple[int, int]) -> Float[Array, "n H W c"]:
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear")  # antialiased


def unit(x: Array) -> Array:
    """Returns vectors of length 1 along the last axis; of none, none."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
