"""The loader over finished data sets: mixed, shuffled, shared among processes, resumed, local and remote."""

import numpy as np
import pytest

from prismer_jax import input, pp
from prismer_jax.datasets import load
from prismer_jax.input_test import Numbers, assert_same, take
from prismer_jax.shards.reader_test import example, write

CHAIN = (
    "labels_for('depth+obj_detection')|decode|random_resized_crop(16, 8)|flip|randaugment(2, 5)|caption|tokenize(24)"
)
LARGE, SMALL = 21, 10  # photos
WEIGHTS = (3.0, 1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    numbers = iter(range(LARGE + SMALL))
    for name, shards in (("large", (9, 9, 3)), ("small", (5, 5))):
        (root / name).mkdir()
        write(root / name, *[[example(next(numbers)) for _ in range(count)] for count in shards])
    return root


@pytest.fixture
def mixture(folders, tmp_path, monkeypatch):
    """Makes the mixture; with a scheme its sets are remote: read by fsspec, in worker processes too."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "cache"))

    def mix(scheme=""):
        chain = pp.build(CHAIN, tokenizer=pp.tokenizer.load("scenes"))
        sources = [load("records", path=f"{scheme}{folders / name}") for name in ("large", "small")]
        return [{"source": s, "pp": chain, "weight": w} for s, w in zip(sources, WEIGHTS, strict=True)]

    return mix


def batches(data, **options):
    return input.train_batches(data, batch_size=8, seed=3, **options)


def test_remote_sets_give_the_batches_of_local_ones(mixture, tmp_path):
    local = take(batches(mixture()), 6)
    assert not (tmp_path / "cache/remote").exists()
    for one, two in zip(local, take(batches(mixture("local://"), num_workers=2), 6), strict=True):
        assert_same(one, two)
    assert len(list((tmp_path / "cache/remote").rglob("*.array_record*"))) == 5


@pytest.mark.parametrize(("workers", "processes"), [(2, 1), (0, 2), (1, 2)])
def test_a_run_resumes_with_other_numbers_of_workers_and_processes(mixture, workers, processes):
    whole = take(batches(mixture()), 7)[3:]
    rows = np.arange(8).reshape(processes, -1)
    parts = [take(batches(mixture(), first_step=3, num_workers=workers, rows=own), 4) for own in rows]
    for step, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[step][key] for part in parts]), batch[key])


def test_weights_hold_to_within_one_example_at_every_moment():
    sources = [Numbers(count, start) for count, start in ((50, 0), (80, 100), (9, 200))]
    weights = np.array([0.55, 0.4, 0.05])
    data = [{"source": s, "pp": _number, "weight": w} for s, w in zip(sources, weights, strict=True)]
    drawn = np.concatenate([batch["number"] for batch in take(batches(data), 125)]) // 100
    counts = np.cumsum(drawn[:, None] == np.arange(3), 0)
    assert np.abs(counts - np.arange(1, 1001)[:, None] * weights).max() < 1.01


def test_the_shuffle_is_global_and_each_epoch_of_a_set_in_a_mixture_has_each_example_once():
    count = 1000
    data = [{"source": Numbers(count), "pp": _number}, {"source": Numbers(7, 5000), "pp": _number}]
    drawn = np.concatenate([batch["number"] for batch in take(batches(data), 500)])
    first, second = drawn[drawn < count].reshape(2, count)
    for epoch in (first, second):
        assert sorted(epoch) == list(range(count))
        # An example of a random order lies n/3 from its place on average; of a window of w examples, at most w.
        assert np.abs(epoch - np.arange(count)).mean() == pytest.approx(count / 3, rel=0.1)
    assert (first == second).mean() < 0.02


def _number(example, rng):
    return {"number": np.asarray(example["number"])}
