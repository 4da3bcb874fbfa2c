"""Training by several processes on this machine: the losses of one, and each writes its part of a checkpoint."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from prismer_jax import sharding
from prismer_jax.checkpoint import Checkpointer
from prismer_jax.sharding import presets_test
from prismer_jax.testing import ROOT

# Trains presets_test's toy by each preset on the devices of all processes, and goes on from a checkpoint.
PROGRAM = """
import json, pathlib, sys
import jax
from prismer_jax import sharding
sharding.initialize_distributed()
from prismer_jax.sharding import presets_test as toys
from prismer_jax.checkpoint import Checkpointer
folder, found = pathlib.Path(sys.argv[1]), {}
for name, (spec, axes) in json.loads(sys.argv[2]).items():
    mesh = sharding.make_mesh(axes)
    losses, state = toys.run(spec, mesh, steps=3)
    like = toys.toy(spec, mesh)[2]
    with Checkpointer(folder / name, keep=2) as saver, jax.set_mesh(mesh):
        saver.save(3, state)
        saver.wait()
        state = saver.restore(like)
    found[name] = losses
    sharding.barrier("next")
print(json.dumps(found))
"""


def start(count, folder, cases, devices=1, program=PROGRAM):
    """Returns what each of `count` processes of so many devices each printed last."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    shared |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, "-c", program, str(folder), json.dumps(cases)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    processes = [
        subprocess.Popen(command, env=os.environ | shared | {"JAX_PROCESS_ID": str(index)}, **pipes)
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=1500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def check(found, folder, cases):
    """Compares losses with those of one device, and reads the last checkpoint of each case by this one process."""
    mesh = sharding.make_mesh()
    expected, state = presets_test.run((), mesh, steps=3)
    for losses in found:
        for name in cases:
            np.testing.assert_allclose(losses[name], expected, rtol=1e-5, err_msg=name)
    for name, (spec, _) in cases.items():
        like = presets_test.toy(spec if "tensor" not in spec else "zero3", mesh)[2]
        restored = Checkpointer(pathlib.Path(folder, name)).restore(like)
        words = [np.asarray(part["params"]["word_embedding"]) for part in (restored, state)]
        np.testing.assert_allclose(*words, atol=1e-3)


def test_two_processes_have_the_losses_of_one_with_tensor_across_them_too(tmp_path):
    cases = {"data": ("zero2", {"data": 2}), "tensor": ("tensor", {"data": 1, "tensor": 2})}
    check(start(2, tmp_path, cases), tmp_path, cases)


@pytest.mark.slow
def test_four_processes_have_the_losses_of_one_with_every_preset(tmp_path):
    cases = {spec: (spec, axes) for spec, axes in presets_test.PRESETS}
    check(start(4, tmp_path, cases, devices=2), tmp_path, cases)
