import contextlib
import gc
import logging
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from prismer_jax import input
from prismer_jax.errors import BadSample, UserError


class Numbers:
    """A source of `count` examples, of which those listed in `bad` cannot be used."""

    def __init__(self, count=40, start=0, bad=(), error=BadSample):
        self.count, self.start, self.bad, self.error = count, start, bad, error

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        assert 0 <= index < self.count
        if index in self.bad:
            raise self.error(f"number {index}.jpg is broken")
        return {"number": np.int32(self.start + index), "id": str(index)}


def draw(example, rng):
    """A stand-in for a preprocessing chain: what it draws shows whether the randomness is reproducible."""
    number = example["number"]
    return example | {
        "image": np.full((2, 2, 3), number % 256, np.uint8),
        "drawn": np.float64(rng.random()) * np.ones(1),
    }


def plain(example, rng):
    return example | {"text": np.full(3, example["number"], np.int32), "note": "host"}


def take(batches, count):
    out = [next(batches) for _ in range(count)]
    batches.close()
    return out


def batches(first_step=0, data=None, batch_size=8, seed=1, **options):
    data = data or [{"source": Numbers(), "pp": draw}]
    return input.train_batches(data, batch_size=batch_size, seed=seed, first_step=first_step, **options)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


def test_batches_are_stacked_arrays_without_host_values():
    (batch,) = take(batches(), 1)
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        "image": ((8, 2, 2, 3), "uint8"),
        "drawn": ((8, 1), "float64"),
        "_mask": ((8,), "bool"),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_six_steps_are_three_and_a_resumed_three(workers):
    mixture = [
        {"source": Numbers(bad=(3, 4)), "pp": draw, "weight": 2.0},
        {"source": Numbers(11, start=100), "pp": draw},
    ]
    whole = take(batches(data=mixture), 6)
    first = take(batches(data=mixture), 3)
    rest = take(batches(3, data=mixture, num_workers=workers), 3)
    for one, two in zip(whole, first + rest, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("rows", [range(4), range(4, 8), (0, 3, 7), (5,)])
def test_a_process_reads_its_rows_of_the_global_batches(rows, workers):
    mixture = [{"source": Numbers(bad=(3, 4)), "pp": draw}, {"source": Numbers(11, start=100), "pp": draw}]
    whole, part = take(batches(2, mixture), 5), take(batches(2, mixture, rows=rows, num_workers=workers), 5)
    for one, two in zip(whole, part, strict=True):
        assert_same({key: value[list(rows)] for key, value in one.items()}, two)


def test_each_epoch_sees_every_example_once_in_another_order_and_draws_anew():
    whole = take(batches(), 10)  # two epochs of 40
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in whole])
    assert sorted(numbers[:40]) == sorted(numbers[40:]) == list(range(40))
    assert numbers[:40].tolist() != numbers[40:].tolist()
    assert len(np.unique(np.concatenate([batch["drawn"] for batch in whole]))) == 80
    other = take(input.train_batches([{"source": Numbers(), "pp": draw}], batch_size=8, seed=2), 1)
    assert not np.array_equal(other[0]["image"], whole[0]["image"])


def test_mixtures_keep_their_weights_and_do_not_share_randomness():
    mixture = [
        {"source": Numbers(40), "pp": draw, "weight": 3},
        {"source": Numbers(40, start=100), "pp": draw, "weight": 1},
    ]
    whole = take(batches(data=mixture), 10)
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in whole])
    assert (numbers >= 100).sum() == 20
    first, second = numbers[numbers < 100][:20].tolist(), (numbers[numbers >= 100] - 100).tolist()
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_part_that_starts_later_changes_no_batch_before_it_and_is_resumed(workers):
    first = {"source": Numbers(40), "pp": draw, "weight": 3}
    mixture = [first, {"source": Numbers(40, start=100), "pp": draw, "weight": 1, "start": 4}]
    whole = take(batches(data=mixture), 10)
    late = [(batch["image"][:, 0, 0, 0] >= 100).mean() for batch in whole]
    assert late == [0] * 4 + [0.25] * 6
    for batch, alone in zip(whole, take(batches(data=[first]), 4), strict=False):
        np.testing.assert_array_equal(batch["drawn"], alone["drawn"])
    for batch, resumed in zip(whole[3:], take(batches(3, mixture, num_workers=workers), 7), strict=True):
        np.testing.assert_array_equal(batch["drawn"], resumed["drawn"])


def test_an_epoch_has_each_example_once_although_other_parts_start_within_it():
    """Each part goes on from its own examples so far, whatever its share of a batch was and is."""
    weights, starts = [0.7, 0.41, 0.33], [0, 3, 5]
    mixture = [
        {"source": Numbers(60, start=70 * part), "pp": draw, "weight": weight, "start": start}
        for part, (weight, start) in enumerate(zip(weights, starts, strict=True))
    ]
    whole = take(batches(data=mixture), 40)
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in whole])
    drawn = np.concatenate([batch["drawn"] for batch in whole])
    assert len(np.unique(drawn)) == len(numbers) == 40 * 8
    for part in range(3):
        own = numbers[numbers // 70 == part]
        for epoch in range(len(own) // 60):
            assert len(np.unique(own[60 * epoch : 60 * epoch + 60])) == 60
    assert len(own) > 60  # of the last one, too


def test_bad_samples_are_counted_named_and_replaced_by_the_same_others(caplog):
    data = [{"source": Numbers(bad=range(5)), "pp": draw}]
    caplog.set_level(logging.WARNING)
    runs = []
    for _ in range(2):
        loader = batches(data=data)
        runs.append([next(loader) for _ in range(5)])
        loader.close()
        assert (loader.seen, loader.bad) >= (40, 5)
    for one, two in zip(*runs, strict=True):
        assert_same(one, two)
    numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in runs[0]])
    assert len(numbers) == 40
    assert numbers.min() >= 5
    assert "is broken" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_end_the_run_with_one_line(workers):
    data = [{"source": Numbers(bad=range(20)), "pp": draw}]
    with pytest.raises(UserError, match=r"bad samples .*max_bad_fraction=0.01.*jpg is broken"):
        take(batches(data=data, num_workers=workers), 20)
    with pytest.raises(UserError, match=r"max_bad_fraction=0\.0 "):
        take(batches(data=[{"source": Numbers(bad=[1]), "pp": draw}], max_bad_fraction=0.0), 5)
    with pytest.raises(UserError, match="16 samples in a row"):
        take(batches(data=[{"source": Numbers(bad=range(40)), "pp": draw}]), 1)


def test_other_errors_surface_at_once_errors_of_users_as_such():
    with pytest.raises(UserError, match="is broken"):
        take(batches(data=[{"source": Numbers(bad=range(40), error=UserError), "pp": draw}]), 1)
    with pytest.raises(ZeroDivisionError):
        take(batches(data=[{"source": Numbers(bad=range(40), error=ZeroDivisionError), "pp": draw}]), 1)


def test_examples_of_different_shapes_are_explained():
    mixture = [{"source": Numbers(), "pp": draw}, {"source": Numbers(), "pp": plain}]
    with pytest.raises(UserError, match=r"drawn float64 \(1,\) and absent.*text absent and int32 \(3,\)"):
        take(batches(data=mixture), 1)


# A batch has one type. Cast into the first example's, as Grain's own batches are (findings/grain_worker_batch_types.sh,
# grain 0.2.18), 40,000 would be 64 behind a map of 8 bits.
@pytest.mark.parametrize("workers", [0, 2])
def test_examples_of_different_types_are_explained(workers):
    def depth(example, rng):
        number = example["number"]
        return example | {"depth": np.full((2, 2), 40_000, np.uint16) if number % 2 else np.full((2, 2), 200, np.uint8)}

    with pytest.raises(UserError, match=r"depth uint(8|16) \(2, 2\) and uint(8|16) \(2, 2\)\. .* each key one type"):
        take(batches(data=[{"source": Numbers(), "pp": depth}], num_workers=workers), 1)


def test_texts_that_were_cut_are_counted_and_reported_once(caplog):
    def cut(example, rng):
        return draw(example, rng) | {"_cut": example["number"] % 2}

    loader = batches(data=[{"source": Numbers(), "pp": cut}])
    for _ in range(5):
        next(loader)
    loader.close()
    assert loader.cut == 20
    assert caplog.text.count("tokenize's length") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch of 0"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0 to 4294967295"),
        ({"num_workers": -1}, "num_workers=-1: must be from 0"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
        ({"max_bad_fraction": -0.1}, "max_bad_fraction=-0.1: a number from 0 to 1"),
        ({"max_bad_fraction": "1%"}, "max_bad_fraction='1%': a number from 0 to 1"),
        ({"rows": (7, 8)}, r"rows \[7, 8\] are not some of a batch of 8"),
        ({"rows": ()}, r"rows \[\] are not some"),
        ({"data": [{"source": Numbers(0), "pp": draw}]}, "empty"),
        ({"data": [{"source": Numbers(), "pp": draw, "weight": 0}]}, "weight 0"),
        ({"data": [{"source": Numbers(), "pp": draw, "weight": float("nan")}]}, "weight nan"),
        ({"data": [{"source": Numbers(), "pp": draw, "start": 2}]}, "no data set that starts at step 0"),
    ],
)
def test_impossible_settings_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        batches(**options)


@pytest.mark.parametrize(("count", "workers"), [(1, 0), (2, 0), (4, 0), (1, 2)])
def test_evaluation_covers_each_example_once(count, workers):
    source = Numbers(19)
    seen = []
    for process in range(count):
        rows = range(8)[process::count]
        loader = input.eval_batches(source, plain, batch_size=8, rows=rows, num_workers=workers)
        whole = list(loader)
        assert len(whole) == len(loader) == 3
        for batch in whole:
            assert batch["text"].shape == (8 // count, 3)
            assert len(batch["meta"]) == 8 // count
            for row, (real, meta) in enumerate(zip(batch["_mask"], batch["meta"], strict=True)):
                if real:
                    assert meta["id"] == str(batch["text"][row, 0])
                    assert meta["note"] == "host"
                    seen.append(int(meta["id"]))
    assert sorted(seen) == list(range(19))
    if count == 1:
        assert seen == list(range(19))


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_takes_up_the_batches_that_are_left(count):
    for process in range(count):
        options = dict(batch_size=4, rows=range(4)[process::count])
        whole, rest = (list(input.eval_batches(Numbers(10), draw, **options, numbers=n)) for n in (None, [0, 2]))
        for one, two in zip([whole[0], whole[2]], rest, strict=True):
            np.testing.assert_array_equal(one["drawn"], two["drawn"])
            np.testing.assert_array_equal(one["_mask"], two["_mask"])
    assert list(input.eval_batches(Numbers(10), draw, batch_size=4, numbers=[])) == []


def test_evaluation_can_be_repeated_with_the_same_draws():
    loader = input.eval_batches(Numbers(10), draw, batch_size=4)
    for one, two in zip(loader, loader, strict=True):
        np.testing.assert_array_equal(one["drawn"], two["drawn"])
    with pytest.raises(UserError, match="empty"):
        input.eval_batches(Numbers(0), draw, batch_size=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_evaluation_a_bad_sample_is_an_empty_row_that_says_why(workers):
    whole = list(input.eval_batches(Numbers(10), plain, batch_size=4))
    rest = list(input.eval_batches(Numbers(10, bad=[0, 7]), plain, batch_size=4, num_workers=workers))
    masks = np.concatenate([batch["_mask"] for batch in rest])
    assert [i for i, real in enumerate(masks) if not real] == [0, 7, 10, 11]
    np.testing.assert_array_equal(
        np.concatenate([b["text"] for b in rest])[masks],
        np.delete(np.concatenate([b["text"] for b in whole])[:10], [0, 7], 0),
    )
    meta = [row for batch in rest for row in batch["meta"]]
    assert meta[7] == {"error": "number 7.jpg is broken", "reason": "unusable sample"}
    assert meta[0]["error"] == "number 0.jpg is broken"
    assert not any("error" in row for i, row in enumerate(meta) if i not in (0, 7))


def test_evaluation_stops_where_no_sample_is_good_or_an_error_is_of_all():
    with pytest.raises(UserError, match=r"None of the 3 samples can be used\. The first: number 0.jpg is broken"):
        list(input.eval_batches(Numbers(3, bad=range(3)), plain, batch_size=4))
    with pytest.raises(UserError, match=r"^number 2\.jpg is broken"):
        list(input.eval_batches(Numbers(3, bad=[2], error=UserError), plain, batch_size=4))


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.P("data"))


def test_to_device_spreads_batches_keeps_host_values_and_order(sharding):
    loader = input.eval_batches(Numbers(32), plain, batch_size=16)
    with jax.transfer_guard("disallow"):
        whole = list(input.to_device(loader, sharding))
    assert len(whole) == 2
    assert whole[0]["text"].sharding == sharding
    assert whole[0]["text"].addressable_shards[0].data.shape == (2, 3)
    assert whole[1]["text"][:, 0].tolist() == list(range(16, 32))
    assert whole[1]["meta"][0]["id"] == "16"


def test_to_device_runs_ahead_and_closes_its_loader(sharding):
    loader = batches()
    pulled = []

    class Spy:
        def __iter__(self):
            for batch in loader:
                pulled.append(batch)
                yield batch

        def close(self):
            loader.close()

    device = input.to_device(Spy(), sharding, size=2)
    next(device)
    assert len(pulled) == 3
    device.close()
    with pytest.raises(Exception, match="closed"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_on_the_device_stay_as_they_are_while_others_are_loaded(workers):
    """On a CPU they are the memory of the host's batches (jax 0.10.2), which a loader must then not use again."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loader = batches(data=[{"source": Numbers(), "pp": large}], num_workers=workers)
    device = input.to_device(loader, place)
    arrays = take(device, 10)
    gc.collect()
    for batch, expected in zip(arrays, take(batches(), 10), strict=True):
        np.testing.assert_array_equal(batch["large"], np.repeat(expected["image"][:, 0, 0, :1], 4096, axis=1))


def large(example, rng):
    return draw(example, rng) | {"large": np.full(4096, example["number"], np.int32)}


def test_to_device_says_when_devices_do_not_divide_the_batch(sharding):
    with pytest.raises(UserError, match="batch of 12 does not divide"):
        next(input.to_device(batches(batch_size=12), sharding))


def test_closing_stops_the_threads():
    before = threading.active_count()
    loader = batches(num_threads=3)
    next(loader)
    loader.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


SCRIPT = """
import signal, sys
import jax
from prismer_jax import errors, input, input_test

def main():
    loader = input.train_batches(
        [{"source": input_test.Numbers(), "pp": input_test.large}], batch_size=8, seed=0, num_workers=int(sys.argv[1]))
    place = input.placer(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    kept = [place(next(loader)) for _ in range(3)]
    print("ready", flush=True)
    while True:
        next(loader)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell runs in the background ignore it
    errors.run_main(main)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_interrupt_ends_the_program_promptly_with_one_line(tmp_path, workers):
    """Also where its devices hold the memory that workers share: Python warns of what nobody frees (Grain 0.2.18)."""
    (tmp_path / "main.py").write_text(SCRIPT)
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(input.__file__).parent.parent)},
    )
    try:
        assert process.stdout.readline() == "ready\n"
        patience = 10 + 5 * (time.monotonic() - start)  # a busy machine is as slow at starting as at stopping
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, stderr = process.communicate(timeout=patience)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 2
    assert [line for line in stderr.splitlines() if line] == [
        "interrupted: stopped by Ctrl-C; what was saved before stays valid."
    ]


def test_loader_functions_can_be_pickled():
    assert pickle.loads(pickle.dumps(input._TrainExample(Numbers(), draw)))(0, np.random.default_rng(0))["_bad"] == []
