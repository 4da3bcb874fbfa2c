"""Checkpoints, exports and whole runs in a bucket: what they do on a disk, without a rename."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import checkpoint, config
from prismer_jax.checkpoint import Checkpointer, buckets
from prismer_jax.errors import UserError
from prismer_jax.files import bucket_test, mirror, remote, storage
from prismer_jax.testing import ROOT
from prismer_jax.train import train


def state_of(step):
    return {"params": {"kernel": jnp.full((16, 4), step, jnp.float32)}, "step": jnp.int32(step)}


def kernel(variables):
    return np.unique(np.asarray(variables["params"]["kernel"])).tolist()


def test_checkpoints_are_saved_kept_and_restored(bucket):
    with Checkpointer(f"{bucket}/checkpoints", keep=2, best_metric="score", config={"model": 1}) as saver:
        for step, score in ((1, 0.9), (2, 0.1), (3, 0.2), (4, 0.3)):
            saver.save(step, state_of(step), {"score": score})
    reader = Checkpointer(f"{bucket}/checkpoints", best_metric="score")
    assert (reader.all_steps(), reader.latest_step(), reader.best_step()) == ([1, 3, 4], 4, 1)
    assert kernel(reader.restore(state_of(0))) == [4]
    assert kernel(reader.restore(jax.eval_shape(lambda: state_of(0)), step=1)) == [1]
    for path in (bucket, f"{bucket}/checkpoints", f"{bucket}/checkpoints/4"):
        variables, described = checkpoint.load_export(path)
        assert kernel(variables) == [4]
        assert described["model"] == 1
    with pytest.raises(UserError, match=f"{bucket}/nothing does not exist"):
        checkpoint.find(f"{bucket}/nothing")


def test_half_a_checkpoint_is_none_and_is_written_again(bucket):
    with Checkpointer(bucket, keep=2) as saver:
        saver.save(1, state_of(1))
        saver.save(2, state_of(7))
    storage.remote().delete(f"{bucket}/2/{buckets.COMMITTED}")  # as a kill would leave it
    with Checkpointer(bucket) as saver:
        assert saver.latest_step() == 1
        saver.save(2, state_of(2))
    assert kernel(Checkpointer(bucket).restore(state_of(0))) == [2]


def test_a_step_that_another_process_finished_or_deleted_since_is_seen(bucket):
    """A mirror lists all that lies below the run, half a step among it, which another process then writes again."""
    storage.write(f"{bucket}/checkpoints/5/weights", "half")
    directory = remote.bucket(f"{bucket}/checkpoints")
    committed = f"{bucket.removeprefix('gs://bucket/')}/checkpoints/5/{buckets.COMMITTED}"
    remote.find(bucket)
    assert buckets.complete(directory) == []
    bucket_test.Bucket.objects[committed] = bucket_test.Object(b"done", next(bucket_test.COUNT))
    assert buckets.complete(directory) == [5]
    remote.find(bucket)
    del bucket_test.Bucket.objects[committed]
    assert buckets.complete(directory) == []


def test_an_export_is_replaced_and_a_killed_one_is_none(bucket, tmp_path, monkeypatch):
    path = f"{bucket}/export"
    (tmp_path / "words.model").write_bytes(b"words")
    for step in (1, 2):
        files = {"words.model": tmp_path / "words.model"}
        checkpoint.export(path, {"params": state_of(step)["params"]}, {"number": step}, files)
        variables, described = checkpoint.load_export(bucket)
        assert kernel(variables) == [step]
        assert described["number"] == step
        with open(os.path.join(described["folder"], "words.model"), "rb") as file:
            assert file.read() == b"words"
    with pytest.raises(KeyError):  # in the middle, like a kill
        checkpoint.export(path, {"params": state_of(3)["params"]}, {"number": 3}, Killed(a="b"))
    with pytest.raises(UserError, match="is no folder of that kind"):
        checkpoint.find(bucket)
    monkeypatch.setattr(remote, "delete", killed)
    with pytest.raises(KeyError):  # where the old one goes
        checkpoint.export(path, {"params": state_of(3)["params"]}, {"number": 3})
    monkeypatch.undo()
    checkpoint.export(path, {"params": state_of(4)["params"]}, {"number": 4})
    assert checkpoint.load_export(bucket)[1]["number"] == 4
    storage.write(f"{bucket}/mine/photos/1.jpg", b"a photo")
    with pytest.raises(UserError, match=f"{bucket}/mine exists and is no exported model"):
        checkpoint.export(f"{bucket}/mine", {"params": state_of(5)["params"]}, {})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's, of a loop that is gone
def test_a_store_that_fails_is_one_line(bucket, monkeypatch):
    with Checkpointer(bucket) as saver:
        saver.save(1, state_of(1))

    def refuse(request):
        request._body()
        request._say(403, {"error": {"message": "no access"}})

    monkeypatch.setattr(bucket_test.Bucket, "do_POST", refuse)
    said = pytest.raises(UserError, match=f"Cannot write a checkpoint to {bucket}: PERMISSION_DENIED")
    with said, Checkpointer(bucket) as saver:
        saver.save(2, state_of(2))
    assert Checkpointer(bucket).all_steps() == [1]


def killed(path, delete=remote.delete):
    if path.endswith("manifest.ocdbt"):  # of some that are deleted at once
        raise KeyError
    delete(path)


class Killed(dict):
    def items(self):
        raise KeyError


# Trains by the command line and is killed at a step.
KILLED = """
import os, signal, sys
from prismer_jax import train

def note(self, step, measured, note=train.Watch.note):
    note(self, step, measured)
    if step == 4:
        self._checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)

train.Watch.note = note
train.main(sys.argv[1:])
"""

# The quickstart without experts and evaluations.
CONFIG = """
from configs import quickstart

def get_config(arg=None):
    config = quickstart.get_config("z,smoke")
    config.total_steps, config.log_steps, config.save_steps, config.evals = 6, 1, 3, {}
    config.checkpoint = dict(keep=1)
    return config
"""


def test_what_a_run_writes_before_its_first_step_is_in_its_bucket(bucket, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("prismer_jax.input.to_device", stop)
    (tmp_path / "toy.py").write_text(CONFIG)
    with pytest.raises(Stopped):
        train(config.load(str(tmp_path / "toy.py")), bucket)
    assert set(storage.names(bucket)) == {
        *("config.json", "versions.json", "data.json", "starts.json", "metrics.jsonl", "metrics.csv", "tensorboard")
    }
    storage.write(f"{bucket}/checkpoints/3/{buckets.COMMITTED}", "")  # now it belongs to this config
    with pytest.raises(UserError, match=f"{bucket} belongs to another config"):
        train(config.load(str(tmp_path / "toy.py"), ["optim.lr=1e-4"]), bucket)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_bucket(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "EVERY", 0.5)
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "toy.py").write_text(CONFIG)
    spec = str(tmp_path / "toy.py")
    run = f"{bucket}/run"
    command = [sys.executable, "-c", KILLED, "--config", spec, "--workdir", run]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert Checkpointer(f"{run}/checkpoints").all_steps() == [3]
    train(config.load(spec), run)
    train(config.load(spec), tmp_path / "whole")

    def losses(text):
        lines = map(json.loads, text.splitlines())
        return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}

    seen = losses(storage.read(f"{run}/metrics.jsonl").decode())
    assert seen == losses((tmp_path / "whole/metrics.jsonl").read_text())
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    assert {"report.html", "metrics.json", "tensorboard", "export", "checkpoints"} <= set(storage.names(run))
    assert mirror.LOCK not in storage.names(run)
    variables, described = checkpoint.load_export(run)
    assert described["step"] == 6
    whole, _ = checkpoint.load_export(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, variables, whole)
