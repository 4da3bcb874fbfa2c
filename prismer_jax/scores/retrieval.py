"""Retrieval: which texts are found by a photo, and which photos by a text.

Source: salesforce/LAVIS, tasks/retrieval.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

AT = (1, 5, 10)


def best(scores: np.ndarray, k: int | None = None) -> np.ndarray:
    """Returns the places of the k highest scores [n], the highest first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:k]


def rank(scores: np.ndarray, found: Sequence[int], right: Collection[int]) -> float:
    """Returns how many of what was `found`, by its scores, stand before the first right one; infinity without one."""
    for place, number in enumerate(best(scores)):
        if found[number] in right:
            return place
    return float("inf")


def recalls(name: str, ranks: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Yields ('name_r1', percent of the ranks that are below 1), and so for 5 and 10."""
    for at in AT:
        yield f"{name}_r{at}", 100 * float(np.mean(np.asarray(ranks) < at))
