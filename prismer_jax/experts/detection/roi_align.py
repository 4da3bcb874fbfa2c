"""RoIAlign: the part of a feature pyramid inside a box, as a map of fixed size (He et al., arXiv 1703.06870).

Exact and of static shapes. In each bin the map is sampled on a grid that is as fine as the map itself, so the number of
samples depends on the box; but their mean is linear in the map, and the grid is a product of rows and columns: it is
the map multiplied by one matrix from each side. Sources: facebookresearch/detectron2 at 02b5c4e, modeling/poolers.py
and layers/roi_align.py; torchvision, csrc/ops/cpu/roi_align_kernel.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from prismer_jax.experts.detection import boxes, fpn
from prismer_jax.typing import Array, Float, Int, typed

BINS = 7  # on a side of the result
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a square of this side in pixels belongs to this level


@typed
def level_of(rois: Float[Array, "*b 4"], levels: int) -> Int[Array, "*b"]:
    """Returns which of the `levels` first levels of the pyramid a box is taken from (arXiv 1612.03144, eq. 1)."""
    octave = jnp.floor(CANONICAL_LEVEL + jnp.log2(jnp.sqrt(boxes.areas(rois)) / CANONICAL_SIZE + 1e-8))
    return jnp.clip(octave.astype(jnp.int32) - fpn.FIRST, 0, levels - 1)


@typed
def matrix(low: Float[Array, "*b"], high: Float[Array, "*b"], cells: int) -> Float[Array, "*b bins {cells}"]:
    """Returns each cell's weight, on one axis of a map, in each bin of the interval from `low` to `high`, in cells.

    A bin is the mean of ceil(its length) samples, evenly spaced; a sample lies between two cells. Cell i is centred at
    i + 1/2. Samples more than half a cell outside the map count as zeros, others outside as the border.
    """
    interval = jnp.asarray(high - low)[..., None, None, None]
    length = interval / BINS
    count = jnp.ceil(length)
    # In jaxlib 0.10.2 and 0.12.0.1, 21 / 7 is above 3 (findings/jax_division_by_number.sh), in torchvision 3.
    count -= (count - 1) * BINS >= interval
    sample = jnp.arange(-(-cells // BINS))  # as many as the longest interval inside the map has
    at = jnp.asarray(low)[..., None, None, None] - 0.5
    at = at + length * (jnp.arange(BINS)[:, None, None] + (sample[:, None] + 0.5) / jnp.maximum(count, 1))
    counts = (sample[:, None] < count) & (at >= -1) & (at <= cells)
    weights = jax.nn.relu(1 - jnp.abs(jnp.clip(at, 0, cells - 1) - jnp.arange(cells)))
    return jnp.where(counts, weights, 0).sum(-2) / jnp.maximum(count[..., 0], 1)


@typed
def stack(levels: Sequence[Float[Array, "b _ _ c"]]) -> Float[Array, "b H w c"]:
    """Stacks the levels one below the other, the coarser ones filled up with zeros at the right."""
    width = levels[0].shape[2]
    return jnp.concatenate([jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[2]), (0, 0))) for x in levels], 1)


@typed
def roi_align(
    stacked: Float[Array, "b H w c"], sizes: Sequence[tuple[int, int]], rois: Float[Array, "b n 4"]
) -> Float[Array, "b n bins bins c"]:
    """Takes each box out of the level where it is of middling size.

    Args:
      stacked: levels of the pyramid, as `stack` puts them.
      sizes: (height, width) of each.
      rois: boxes in pixels, inside the image.
    """
    level, width = level_of(rois, len(sizes)), stacked.shape[2]
    rows, columns = [], jnp.zeros((*rois.shape[:2], BINS, width))
    for i, (h, w) in enumerate(sizes):
        mine = (level == i)[..., None, None]
        x1, y1, x2, y2 = jnp.moveaxis(rois / 2 ** (fpn.FIRST + i), -1, 0)
        rows.append(jnp.where(mine, matrix(y1, y2, h), 0))
        columns += jnp.pad(jnp.where(mine, matrix(x1, x2, w), 0), ((0, 0), (0, 0), (0, 0), (0, width - w)))
    # Other levels than a box's own have zeros in its rows: one product takes it out of the right one.
    bands = jnp.einsum("bnih,bhwc->bniwc", jnp.concatenate(rows, -1).astype(stacked.dtype), stacked)
    return jnp.einsum("bnjw,bniwc->bnijc", columns.astype(stacked.dtype), bands)
