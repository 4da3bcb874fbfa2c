"""Intervals are as wide as the standard error says, and take little memory."""

import tracemalloc

import numpy as np
import pytest

from prismer_jax.scores import bootstrap


def ends(values, photos=None, **options):
    photos = range(len(values)) if photos is None else photos
    mean, interval = bootstrap.intervals(np.reshape(values, (-1, 1, 1)), np.ones((len(values), 1)), photos, **options)
    assert mean[0, 0] == pytest.approx(np.mean(values))
    return interval[:, 0, 0]


def test_an_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    low, high = ends(values, resamples=10_000)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.02)
    np.testing.assert_allclose([low, high], [0.7308537576783196, 1.1208958171355448])  # what one array of draws gives


def test_values_of_one_photo_are_drawn_together():
    values = np.random.default_rng(1).normal(size=20)
    np.testing.assert_allclose(ends(np.repeat(values, 5), np.arange(100) // 5), ends(values))


def test_draws_are_not_all_held_at_once():
    tracemalloc.start()
    ends(np.arange(5000.0), resamples=10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
