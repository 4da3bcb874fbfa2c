"""Boxes (x1, y1, x2, y2) in pixels: decoding, clipping, overlap, non-maximum suppression. Static shapes throughout."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.typing import Array, Float, Int, typed

# The largest log of a growth: deltas beyond it are clamped before the exponential (detectron2, modeling/
# box_regression.py, _DEFAULT_SCALE_CLAMP).
MAX_GROWTH = float(np.log(1000 / 16))


@typed
def decode(
    deltas: Float[Array, "*b 4"], boxes: Float[Array, "*#b 4"], weights: Sequence[float] = (1, 1, 1, 1)
) -> Float[Array, "*b 4"]:
    """Moves and scales boxes by (dx, dy, dw, dh), each divided by its weight: Faster R-CNN's parameterisation."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
    centre = centre + deltas[..., :2] * size
    size = size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_GROWTH))
    return jnp.concatenate([centre - 0.5 * size, centre + 0.5 * size], -1)


@typed
def clip(boxes: Float[Array, "*b n 4"], size: Int[Array, "*b 2"]) -> Float[Array, "*b n 4"]:
    """Cuts boxes at the edges of an image of this (height, width)."""
    height, width = (size[..., axis, None] for axis in range(2))
    limits = jnp.stack([width, height, width, height], -1).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limits)


def areas(boxes: Array) -> Array:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def nonempty(boxes: Array) -> Array:
    """Returns whether boxes have a width and a height; false for what is not a number."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


@typed
def overlaps(box: Float[Array, " 4"], boxes: Float[Array, "n 4"]) -> Float[Array, " n"]:
    """Returns intersection over union of a box with each other one; not a number where both are empty."""
    corners = jnp.minimum(box[2:], boxes[:, 2:]) - jnp.maximum(box[:2], boxes[:, :2])
    shared = jnp.maximum(corners, 0).prod(-1)
    return shared / (areas(box) + areas(boxes) - shared)


@typed
def suppress(
    scores: Float[Array, "groups n"], boxes: Float[Array, "_ n 4"], threshold: float, count: int
) -> tuple[Int[Array, " {count}"], Int[Array, " {count}"], Float[Array, " {count}"]]:
    """Suppresses non-maxima greedily within each group; returns the best `count` survivors of all groups.

    Takes the highest score, then removes from its group every box that overlaps it by more than the threshold, and so
    on. Since groups do not disturb one another, these are the first `count` of what suppressing each group alone would
    leave, sorted by score.

    Args:
      scores: -inf for what is no candidate.
      boxes: of each group, or [1, n, 4] where all have the same.

    Returns:
      (group, index within it, score) of each, best first; the score is -inf where no candidate was left.
    """
    every = jnp.arange(scores.shape[1])

    def take(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        scores, best = state  # best: of each group, so that a step reads one group only
        group = jnp.argmax(best)
        row = scores[group]
        index = jnp.argmax(row)
        own = boxes[group if len(boxes) > 1 else 0]
        gone = (overlaps(own[index], own) > threshold) | (every == index)
        left = jnp.where(gone, -jnp.inf, row)
        return (scores.at[group].set(left), best.at[group].set(left.max())), (group, index, row[index])

    _, taken = jax.lax.scan(take, (scores, scores.max(1)), length=count)
    return taken
