"""Plans: every sample once, within the limits, full, the same for a seed; the reference's bag by bag."""

import random

import numpy as np
import pytest

from prismer_jax.datasets import bins

# huggingface/nanoVLM at 4e0c096: lengths, images, limits -> rows of _balanced_greedy_knapsack before its shuffle.
REFERENCE = [
    ([30, 30, 30, 20, 20, 10, 10, 10, 5, 5], [1] * 10, (40, 18), 5, [[i] for i in range(10)]),
    ([14, 29, 35, 58, 11, 58, 37, 15, 11, 18, 17, 21], [0] * 12, (64, np.inf), 0,
     [[3], [5], [6, 0], [2, 7], [1, 10, 8], [11, 9, 4]]),
    ([26, 29, 15, 6, 9, 15, 27, 17, 18, 26, 5, 12], [4] * 12, (100, 5), 5,
     [[1], [6], [0], [9], [8], [7], [2], [5], [11], [4], [3], [10]]),
    ([50, 10, 70], [0] * 3, (64, 18), 5, [[2], [0], [1]]),
]  # fmt: skip


@pytest.mark.parametrize(("lengths", "images", "limits", "spare", "rows"), REFERENCE)
def test_the_references_knapsack(lengths, images, limits, spare, rows):
    ours = [row for row in bins.knapsack(np.array([lengths, images]).T, limits, spare) if row]
    assert sorted(ours) == sorted(rows)


def sizes_of(count, longest=1500, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([np.minimum(rng.lognormal(5.5, 0.9, count), longest) + 10, rng.integers(0, 14, count)], 1).astype(
        np.int32
    )


@pytest.mark.parametrize("count", [1, 7, 3000])
@pytest.mark.parametrize("limits", [(4096, 64), (1600, 14)])
def test_every_sample_is_in_one_row_and_no_row_is_over_its_limits(count, limits):
    sizes = sizes_of(count)
    for plan in (bins.best_fit(sizes, limits, 512, 1), bins.reference(sizes, limits, 8, 1)):
        assert sorted(item for row in plan for item in row) == list(range(count))
        assert all((sizes[row].sum(0) <= limits).all() for row in plan)


def test_rows_are_full_where_the_references_are_half_empty():
    sizes, limits = sizes_of(3000)[:, :1], (4096,)

    def fullness(plan):
        return sizes.sum() / (4096 * len(plan))

    assert fullness(bins.best_fit(sizes, limits, 1024, 0)) > 0.98
    assert fullness(bins.reference(sizes, limits, 8, 0)) < 0.75


def test_a_seed_is_a_plan():
    sizes, limits = sizes_of(300), (4096, 64)
    assert bins.best_fit(sizes, limits, 128, 3) == bins.best_fit(sizes, limits, 128, 3)
    assert bins.best_fit(sizes, limits, 128, 3) != bins.best_fit(sizes, limits, 128, 4)
    before = random.getstate()
    assert bins.reference(sizes, limits, 4, 42) == bins.reference(sizes, limits, 4, 42)
    assert random.getstate() == before  # it has a generator of its own
