"""The region proposal network: boxes in which there may be something (Ren et al., arXiv 1506.01497).

Source of constants and of what is done in which order: facebookresearch/detectron2 at 02b5c4e, modeling/
{anchor_generator,proposal_generator/rpn,proposal_generator/proposal_utils}.py, config/defaults.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax.experts.detection import boxes, fpn
from prismer_jax.experts.winograd import Conv
from prismer_jax.typing import Array, Float, Int, typed

SIDES = 4  # strides that the smallest anchor's side measures
OCTAVES = 3  # sizes of anchors on a level: in steps of a third of an octave
RATIOS = (0.5, 1.0, 2.0)  # height to width
ANCHORS = OCTAVES * len(RATIOS)
OVERLAP = 0.7  # beyond which the worse of two proposals of one level is dropped


@functools.cache
def anchors(level: int, height: int, width: int) -> np.ndarray:
    """Returns float32 [height, width, ANCHORS, 4]: boxes around the *corner* (0, 0) of each cell, not its centre."""
    stride = 2**level
    size = SIDES * stride * 2 ** (np.arange(OCTAVES)[:, None] / OCTAVES)
    w = (size / np.sqrt(RATIOS)).ravel()
    h = (size * np.sqrt(RATIOS)).ravel()
    around = np.stack([-w, -h, w, h], -1) / 2
    y, x = np.mgrid[:height, :width] * stride
    return (np.stack([x, y, x, y], -1)[:, :, None] + around).astype(np.float32)


class Head(nn.Module):
    """Predicts for each anchor of each cell a logit of there being an object, and how to move and scale it to fit."""

    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w a"], Float[Array, "b h w 4*a"]]:
        x = jax.nn.relu(Conv(x.shape[-1], (3, 3), dtype=self.dtype, name="conv")(x))
        logits = nn.Conv(ANCHORS, (1, 1), dtype=self.dtype, name="objectness")(x)
        deltas = nn.Conv(4 * ANCHORS, (1, 1), dtype=self.dtype, name="deltas")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32)


@typed
def propose(
    logits: Sequence[Float[Array, "_ _ _"]],
    deltas: Sequence[Float[Array, "_ _ _"]],
    size: Int[Array, " 2"],
    before: int,
    after: int,
) -> tuple[Float[Array, "{after} 4"], Float[Array, " {after}"]]:
    """Returns the best proposals of one image: boxes in its pixels, and their logits.

    Args:
      logits: [h, w, ANCHORS] of each level, from p3 on.
      deltas: [h, w, 4 ANCHORS].
      size: (height, width) of the image; boxes are cut there.
      before: how many of each level, by their logits, take part in the suppression.
      after: how many are returned, best first; where fewer are left, boxes are zeros and logits -inf.
    """
    scores, candidates = [], []
    for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True), fpn.FIRST):
        around = jnp.asarray(anchors(level, *logit.shape[:2]).reshape(-1, 4))
        score, index = jax.lax.top_k(logit.ravel(), min(before, logit.size))
        box = boxes.clip(boxes.decode(delta.reshape(-1, 4)[index], around[index]), size)
        usable = boxes.nonempty(box) & jnp.isfinite(box).all(-1) & jnp.isfinite(score)
        missing = before - len(score)
        scores.append(jnp.pad(jnp.where(usable, score, -jnp.inf), (0, missing), constant_values=-jnp.inf))
        candidates.append(jnp.pad(box, ((0, missing), (0, 0))))
    level, index, score = boxes.suppress(jnp.stack(scores), jnp.stack(candidates), OVERLAP, after)
    return jnp.where(jnp.isfinite(score)[:, None], jnp.stack(candidates)[level, index], 0), score
