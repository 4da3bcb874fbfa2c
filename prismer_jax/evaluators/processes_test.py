"""Evaluation by several processes: the same numbers as by one, no sample lost or counted twice, also after a stop."""

import json
import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, pathlib, sys
import jax
index, count, port, batch_size, samples, stop = map(int, sys.argv[1:7])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
from prismer_jax import sharding
from prismer_jax.evaluators import evaluators_test as toy
from prismer_jax.evaluators.journal import Journal
mesh = sharding.make_mesh({"data": -1})
variables = jax.device_put(toy.VARIABLES, sharding.replicated(mesh))
results = {}
for kind in toy.KINDS:
    evaluator = toy.of_kind(kind, samples, batch_size=batch_size, mesh=mesh)
    evaluator.source = toy.Damaged(evaluator.source, set(map(int, sys.argv[8:])))
    calls = toy.stop_after(evaluator, stop)
    try:
        values = dict(evaluator.run(variables, Journal(pathlib.Path(sys.argv[7]), kind, {"kind": kind}, index, count)))
        shown = [sample["id"] for sample in evaluator.samples(3, "worst")]
        results[kind] = [values, evaluator.records, evaluator.predictions, shown, len(calls), evaluator.left_out]
    except toy.Stop:
        results[kind] = None
print(json.dumps(results))
"""


def run(count, folder, devices=1, batch_size=6, samples=11, stop=-1, bad=()):
    """What each of `count` processes found; all stop when the model is asked for the (stop + 1)-th time."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    arguments = [str(n) for n in (port, batch_size, samples, stop)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(index), str(count), *arguments, str(folder), *map(str, bad)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process with one device finds, by (batch size, samples)."""
    return {
        (batch_size, samples): run(1, tmp_path_factory.mktemp("one"), batch_size=batch_size, samples=samples)[0]
        for batch_size, samples in ((6, 11), (6, 2), (8, 11))
    }


def check(found, wanted, calls=None):
    assert found.keys() == wanted.keys()
    for kind, (values, records, predictions, shown, asked, left_out) in found.items():
        assert values == pytest.approx(wanted[kind][0]), kind
        assert records == wanted[kind][1], kind
        assert predictions == wanted[kind][2], kind
        assert shown == wanted[kind][3], kind
        assert left_out == wanted[kind][5], kind
        assert asked == (wanted[kind][4] if calls is None else calls[kind == "loss"]), kind


@pytest.mark.parametrize(
    ("count", "devices", "batch_size", "samples"),
    [
        (2, 1, 6, 11),
        (3, 1, 6, 11),
        (3, 1, 6, 2),  # fewer samples than processes, and than a batch
        (1, 8, 8, 11),
        (2, 4, 8, 11),
    ],
)
def test_several_processes_give_the_numbers_of_one(count, devices, batch_size, samples, expected, tmp_path):
    for found in run(count, tmp_path, devices, batch_size, samples):
        check(found, expected[batch_size, samples])


@pytest.mark.parametrize("bad", [0, 4, 10])
def test_a_bad_sample_costs_the_same_sample_whatever_the_number_of_processes(bad, tmp_path):
    (expected,) = run(1, tmp_path / "one", bad=[bad])
    assert all([entry["index"] for entry in result[5]] == [bad] for result in expected.values())
    for found in run(2, tmp_path / "two", bad=[bad]):
        check(found, expected)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 2), (3, 1)])
def test_another_number_of_processes_goes_on_after_a_stop(before, after, expected, tmp_path):
    stopped = run(before, tmp_path, stop=1)
    assert all(result is None for process in stopped for result in process.values())
    for found in run(after, tmp_path):
        check(found, expected[6, 11], calls=(2, 1))  # the second batch, and what is said of a blank image
