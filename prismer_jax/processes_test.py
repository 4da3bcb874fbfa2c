"""Training by several processes on this machine: the losses of one, and each writes its part of a checkpoint."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from prismer_jax import metrics, sharding
from prismer_jax.checkpoint import Checkpointer
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.errors import Preempted
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
from prismer_jax.checkpoint.fingerprint import fingerprint
folder, found = pathlib.Path(sys.argv[1]), {}
for name, (spec, axes) in json.loads(sys.argv[2]).items():
    mesh = sharding.make_mesh(axes)
    like = toys.toy(spec, mesh)[2]
    with jax.set_mesh(mesh):
        read = fingerprint(Checkpointer(folder / "one").restore(like))
    losses, state = toys.run(spec, mesh, steps=3)
    with Checkpointer(folder / name) as saver, jax.set_mesh(mesh):
        saver.save(3, state)
        found[name] = losses, read, fingerprint(state)
print(json.dumps(found))
"""

# Says what differs among the processes, then trains until the second process gets SIGTERM.
STOPPED = """
import contextlib, itertools, json, os, pathlib, signal, sys
import jax
from prismer_jax import config, input, sharding
sharding.initialize_distributed()
from prismer_jax import train
from prismer_jax.sharding import processes
from prismer_jax.checkpoint import Checkpointer
from prismer_jax.errors import UserError, run_main
from prismer_jax.sharding import presets_test as toys
from prismer_jax.training.pace import Pace
for lr in (0.1, 0.2):  # of two trainings in a process
    processes.check_same("settings", {"lr": lr})
own = pathlib.Path(sys.argv[1], str(jax.process_index()))
(own / "checkpoints" / ("300" if jax.process_index() else "600")).mkdir(parents=True)
errors = []
for lr, folder in ((jax.process_index(), pathlib.Path()), (0, own)):
    try:
        processes.check_start(config.Section({"seed": 0, "lr": lr}), config.Workdir(folder, folder))
    except UserError as error:
        errors.append(str(error))
print(json.dumps({"errors": errors}), flush=True)
mesh = sharding.make_mesh()
init, update, state = toys.toy("zero3", mesh)
place = sharding.batch_sharding(mesh)
data = [{"source": toys.Sentences(), "pp": toys.with_text}]
batches = input.train_batches(data, batch_size=16, seed=0, rows=sharding.rows_of(place, 16))

class Watch(contextlib.nullcontext):
    pace = Pace(pathlib.Path(sys.argv[1]), 0)
    first_step, total_steps, scores, workdir = 0, 10_000, {}, pathlib.Path()
    def note(self, step, measured):
        self.measured = measured
        if step == 5 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
    def keep(self):
        jax.block_until_ready(self.measured)

with jax.set_mesh(mesh):
    options = Checkpointer(f"{sys.argv[1]}/saved"), {"evaluate": 10**6, "save": 10**6}, lambda *_: None
    with contextlib.closing(input.to_device(batches, place)) as batches:
        state = init(jax.random.key(0))
        update, first = toys.compiled(update, state, batches)
        run_main(train.loop, update, state, itertools.chain([first], batches), Watch(), *options)
"""


# One process fails as a user's error or a bug does, while the other waits for it.
FAILED = """
import sys
sys.stderr = sys.stdout
from prismer_jax import sharding
from prismer_jax.errors import UserError, run_main
from prismer_jax.sharding import processes
processes.POLL = processes.GRACE = 1

def main():
    sharding.initialize_distributed()
    import jax
    if jax.process_index() == int(sys.argv[1]):
        raise {"UserError": UserError, "ValueError": ValueError}[sys.argv[2]]("photos.json: cannot be read.")
    sharding.barrier("data")

run_main(main)
"""

# Trains by the command line, and is preempted after so many steps of this start; 0: not at all.
RESTARTED = """
import os, signal, sys
import jax
from prismer_jax import train
from prismer_jax.errors import run_main

def note(self, step, measured, note=train.Watch.note):
    note(self, step, measured)
    if step == self.first_step + int(sys.argv[1]) and jax.process_index() == 0:
        os.kill(os.getpid(), signal.SIGTERM)

train.Watch.note = note
run_main(train.main, sys.argv[2:])
"""

# The quickstart without experts, and of its evaluations the one that compiles fast, on few questions.
CONFIG = """
from configs import quickstart

def get_config(arg=None):
    config = quickstart.get_config("z,smoke")
    config.mesh = dict(data=2, fsdp=2, tensor=1)
    config.sharding = "zero3"
    config.log_steps = config.save_steps = 1
    config.checkpoint = dict(keep=1)
    config.evals = dict(vqa=config.evals.vqa)
    config.evals.vqa.data.count = 16
    return config
"""


def launch(count, program, *arguments, devices=1, status=0):
    """Returns what each of `count` processes of so many devices each printed, once all have ended with a status.

    One status is that of all, a list has one for each.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    if count > 1:
        shared |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    processes = [
        subprocess.Popen(command, env=os.environ | shared | {"JAX_PROCESS_ID": str(index)}, **pipes)
        for index in range(count)
    ]
    try:
        with ThreadPoolExecutor(count) as pool:  # a pipe that nobody reads would stop its process, and so the others
            outputs = [*pool.map(lambda process: process.communicate(timeout=900), processes)]
    finally:
        for process in processes:
            process.kill()
    expected = status if isinstance(status, list) else [status] * count
    assert [process.returncode for process in processes] == expected, "\n".join(errors[-3000:] for _, errors in outputs)
    return [out for out, _ in outputs]


def start(count, folder, cases, devices=1, program=PROGRAM, status=0):
    """Returns what each process printed last as JSON."""
    outputs = launch(count, program, folder, json.dumps(cases), devices=devices, status=status)
    lines = [[line for line in out.splitlines() if line[:1] in ('"', "{")] for out in outputs]  # Gloo writes, too
    return [json.loads(written[-1]) for written in lines]


def check(count, folder, cases, devices=1):
    """Lets processes read what this one wrote, to the bit, and train; then reads what they wrote, to the bit."""
    mesh = sharding.make_mesh()
    expected, state = presets_test.run("zero3", mesh, steps=3)
    with Checkpointer(folder / "one") as saver:
        saver.save(3, state)
    for found in start(count, folder, cases, devices):
        for name, (losses, read, written) in found.items():
            np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=name)
            assert read == fingerprint(state), name
            like = presets_test.toy("zero1", mesh)[2]
            assert fingerprint(Checkpointer(folder / name).restore(like)) == written, name


def test_two_processes_have_the_losses_of_one_with_tensor_across_them_too(tmp_path):
    check(2, tmp_path, {"data": ("zero2", {"data": 2}), "tensor": ("tensor", {"data": 1, "tensor": 2})})


@pytest.mark.parametrize(
    ("index", "error", "status"), [(0, "UserError", [2, 2]), (1, "UserError", [2, 2]), (1, "ValueError", [2, 1])]
)
def test_where_one_process_fails_the_other_ends_too_and_says_why(index, error, status):
    printed = [text.splitlines() for text in launch(2, FAILED, index, error, status=status)]
    last = {"UserError": "error", "ValueError": "ValueError"}[error] + ": photos.json: cannot be read."
    assert printed[index][-1] == last
    assert printed[1 - index] == [f"process {index}: {last}"]  # and no traceback of its own


@pytest.mark.slow
def test_four_processes_have_the_losses_of_one_with_every_preset(tmp_path):
    check(4, tmp_path, {spec: (spec, axes) for spec, axes in presets_test.PRESETS}, devices=2)
    written = {path.name: bytes_in(path) for path in (tmp_path / "tensor+zero3").glob("3/*/ocdbt.process_*")}
    assert len(written) == 4
    assert max(written.values()) < 0.3 * sum(written.values()), written  # each its part, and nobody the whole


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_four_processes_start_again_with_warm_caches_five_times_and_end_as_one_does(tmp_path, monkeypatch):
    """On a CPU, Gloo waits 30 s for a process that still compiles what the others found in their cache."""
    for name in ("PRISMER_DATA_DIR", "PRISMER_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "small.py").write_text(CONFIG)

    def run(count, name, stop, status=0):
        flags = ("--config", tmp_path / "small.py", "--workdir", tmp_path / name)
        launch(count, RESTARTED, stop, *flags, devices=4 // count, status=status)
        lines = metrics.read(tmp_path / name)
        return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}

    passed = []
    for _ in range(5):  # the first compiles
        passed.append(len(run(4, "four", 2, Preempted.STATUS)))
    found, expected = run(4, "four", 0), run(1, "one", 0)
    print("steps after each start:", passed, len(found))
    assert passed == sorted(set(passed))  # each start went on
    assert found == pytest.approx(expected, rel=1e-4)
    scores, of_one = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("four", "one"))
    assert scores == pytest.approx(of_one)


def test_a_preemption_of_one_process_stops_all_after_the_same_step(tmp_path):
    for found in start(2, tmp_path, {}, program=STOPPED, status=Preempted.STATUS):
        settings, folders = found["errors"]
        assert settings.startswith("The config differs among processes: lr is 0 in 0, 1 in 1.")
        assert folders.startswith("The workdir differs among processes: checkpoints is ['600'] in 0, ['300'] in 1.")
    (step,) = Checkpointer(tmp_path / "saved").all_steps()
    assert step >= 5
