"""Bootstrap intervals of means over photos (Efron and Tibshirani 1993): how far they may be off by chance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES, LEVEL, SEED = 2000, 95, 0
TOGETHER = 20  # draws at a time: for speed, and so that memory does not grow with their number


def intervals(
    values: np.ndarray,
    counted: np.ndarray,
    photos: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means [t, m] of samples of t types, and the ends [2, t, m] of their intervals.

    The mean of the population lies between the ends with LEVEL percent confidence. Photos are drawn with replacement,
    and all samples of a photo come with it.

    Args:
      values: [n, t or 1, m] of n samples.
      counted: [n, t], 1 where a sample is of that type and 0 elsewhere.
      photos: of the samples.
      resamples: a multiple of TOGETHER.
      seed: of the draws.
    """
    places = {photo: place for place, photo in enumerate(dict.fromkeys(photos))}
    rows, size = [places[photo] for photo in photos], len(places)
    sums, counts = np.zeros((size, counted.shape[1], values.shape[2])), np.zeros((size, counted.shape[1]))
    np.add.at(sums, rows, np.where(counted[..., None] > 0, values, 0))
    np.add.at(counts, rows, counted)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples // TOGETHER):
        indices = rng.integers(size, size=(TOGETHER, size))
        times = np.stack([np.bincount(row, minlength=size) for row in indices]).astype(float)
        number = (times @ counts)[..., None]
        total = (times @ sums.reshape(size, -1)).reshape(TOGETHER, *sums.shape[1:])
        drawn.append(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))  # a rare type: none
    ends = np.nanpercentile(np.concatenate(drawn), [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    return sums.sum(0) / counts.sum(0)[:, None], ends
