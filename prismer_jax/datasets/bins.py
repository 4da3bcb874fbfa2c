"""Which samples share a row: plans from the samples' sizes alone.

A size is a row of integers, the tokens of a sample first, then whatever else of it has a limit (tiles, photos). A plan
is a list of rows, each of them the numbers of its samples in their order.

Source of the reference: huggingface/nanoVLM, data/advanced_datasets.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

Plan = list[list[int]]
SPARE = 5  # rows that the reference opens beyond those that the tokens fill


def best_fit(sizes: np.ndarray, limits: Sequence[float], window: int, seed: int) -> Plan:
    """Fills rows as far as it can: in a random order, of every `window` samples the largest first, each to the fullest
    row that it still fits into. Small samples find gaps, so a row stays open only at the end of a window.

    Args:
      sizes: int [n, k].
      limits: [k], of a row.
    """
    order, bounds = np.random.default_rng(seed).permutation(len(sizes)), np.asarray(limits, np.float64)
    rows: Plan = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(-(sizes[part] / bounds).max(1), kind="stable")]
        free, opened = np.tile(bounds, (len(part), 1)), 0
        for item in part:
            left = free[:opened] - sizes[item]
            fits = (left >= 0).all(1)
            if fits.any():
                row = int(np.where(fits, left[:, 0], np.inf).argmin())
            else:
                row, opened = opened, opened + 1
                rows.append([])
            free[row] -= sizes[item]
            rows[row - opened].append(int(item))
    return rows


def knapsack(sizes: np.ndarray, limits: Sequence[float], spare: int = SPARE) -> Plan:
    """Returns the reference's plan of a buffer: the longest first, each to the emptiest row that it fits into.

    As it opens more rows than the tokens fill, it leaves many of a small buffer's samples alone. Rows may be empty, and
    a sample that fits into none gets its own.
    """
    bounds = np.asarray(limits, np.float64)
    rows: Plan = [[] for _ in range(-int(-sizes[:, 0].sum() // bounds[0]) + spare)]
    loads = np.zeros((len(rows), len(bounds)))
    for item in np.argsort(-sizes[:, 0], kind="stable"):
        fits = (loads + sizes[item] <= bounds).all(1)
        if not fits.any():
            rows.append([])
            loads, fits = np.vstack([loads, np.zeros(len(bounds))]), np.append(fits, True)
        row = int(np.where(fits, loads[:, 0], np.inf).argmin())
        rows[row].append(int(item))
        loads[row] += sizes[item]
    return rows


def reference(sizes: np.ndarray, limits: Sequence[float], buffer: int, seed: int) -> Plan:
    """Returns the reference's plan: `knapsack` of every so many samples, in order, as have tokens for `buffer` rows.

    The rows of each buffer are shuffled by Python's generator, the empty ones among them, which are then dropped.
    """
    shuffle, plan = random.Random(seed).shuffle, []
    start, tokens = 0, 0
    for end, size in enumerate(sizes[:, 0].tolist(), 1):
        tokens += size
        if tokens >= buffer * limits[0] or end == len(sizes):
            rows = knapsack(sizes[start:end], limits)
            shuffle(rows)
            plan += [[start + item for item in row] for row in rows if row]
            start, tokens = end, 0
    return plan
