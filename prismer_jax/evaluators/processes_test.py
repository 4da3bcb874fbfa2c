"""Evaluation by several processes: the same numbers as by one, no sample lost or counted twice."""

import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import jax
index, count, port = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
from prismer_jax import sharding
from prismer_jax.evaluators import evaluators_test as toy
mesh = sharding.make_mesh({"data": -1})
captions = toy.made("caption", toy.captioned(11), batch_size=6, mesh=mesh, max_new=4)
questions = toy.made("vqa", toy.asked(11), batch_size=6, mesh=mesh)
loss = toy.made("loss", toy.captioned(11), batch_size=6, mesh=mesh)
variables = jax.device_put(toy.VARIABLES, sharding.replicated(mesh))
values = [dict(evaluator.run(variables)) for evaluator in (captions, questions, loss)]
print(json.dumps([values, captions.predictions, questions.predictions]))
"""


def run(count):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(index), str(count), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_numbers_of_one(count):
    (expected,) = run(1)
    for values, captions, questions in run(count):
        assert (captions, questions) == (expected[1], expected[2])
        for got, wanted in zip(values, expected[0], strict=True):
            assert got == pytest.approx(wanted)
