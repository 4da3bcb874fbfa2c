"""Several processes at one job, killed and started again in other numbers: nothing is lost, and nothing done twice."""

import collections
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_png
from prismer_jax.experts import testing, weights
from prismer_jax.files import leases
from prismer_jax.shards import records
from tools import make_labels

COUNT = 40

# The command with the toy experts, made slow; what it writes is logged: which expert's, by which process. It begins
# when as many processes as there are could begin: else the first may have done it all before the last is there.
PROGRAM = """
import os, pathlib, sys, time
from prismer_jax import label_files
from prismer_jax.experts import testing, weights
from tools import make_labels
make_labels.EXPERTS = weights.EXPERTS = testing.TOYS
log, pause, count, files = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), label_files.files
finish = make_labels.finish
def meet(*args):
    (log.parent / f"arrived.{os.getpid()}").touch()
    while len([*log.parent.glob("arrived.*")]) < count:
        time.sleep(0.02)
    finish(*args)
def logged(expert, *label, **parts):
    time.sleep(pause)
    made = files(expert, *label, **parts)
    with open(log, "a") as file:
        file.write(f"{expert} {os.getpid()}\\n")
    return made
label_files.files, make_labels.finish = logged, meet
make_labels.main(sys.argv[4:])
"""


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 256, (30 + i % 3, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i:02}.png")
    return tmp_path / "photos"


class Job:
    """The command's processes at one output, and what they did."""

    def __init__(self, photos, *output, pause=0.05, environment=()):
        self.log, self.pause = photos.parent / "log", pause
        self.flags = ["--images", str(photos), "--experts", "depth,obj_detection", "--random-weights", *output]
        self.flags += ["--shard-size", "8", "--threads", "2", "--expiry", "20"]
        self.environment = os.environ | {"XLA_FLAGS": ""} | dict(environment)
        self.processes = []

    def start(self, count, *flags, environments=None):
        environments = environments or [{}] * count
        command = [sys.executable, "-c", PROGRAM, str(self.log), str(self.pause), str(count), *self.flags, *flags]
        self.processes = [
            subprocess.Popen(
                command, env=self.environment | more, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for more in environments
        ]

    def made(self):
        return collections.Counter(line.split()[0] for line in self.lines())

    def lines(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, count):
        """Until so many labels were made in all."""
        while len(self.lines()) < count:
            assert all(process.poll() is None for process in self.processes), self.processes[0].stderr.read()
            time.sleep(0.02)

    def kill(self, *numbers):
        for number in numbers:
            self.processes[number].kill()
            self.processes[number].communicate()

    def end(self, *numbers):
        """Waits for the end of processes; returns what they printed."""
        outputs = [self.processes[number].communicate(timeout=300) for number in numbers]
        for number, (_, errors) in zip(numbers, outputs, strict=True):
            assert self.processes[number].returncode == 0, errors
        return outputs


@pytest.fixture
def start():
    jobs = []
    yield lambda *args, **kwargs: jobs.append(Job(*args, **kwargs)) or jobs[-1]
    for process in (process for job in jobs for process in job.processes):
        process.kill()
        process.wait()


def label_alone(photos, output, monkeypatch):
    """What one process makes that nobody disturbs."""
    for module in (make_labels, weights):
        monkeypatch.setattr(module, "EXPERTS", testing.TOYS)
    flags = ["--images", str(photos), "--experts", "depth,obj_detection", "--random-weights"]
    make_labels.main([*flags, *map(str, output)])


def files(folder):
    paths = [path for expert in ("depth", "obj_detection") for path in (folder / expert).iterdir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if not path.name.startswith(".")}


def test_three_processes_of_which_one_is_killed_make_every_label_once(photos, tmp_path, start, monkeypatch):
    job = start(photos, "--output", str(tmp_path / "labels"))
    job.start(3)
    job.wait_for(12)
    job.kill(0)
    job.end(1, 2)
    assert len({line.split()[1] for line in job.lines()}) > 1
    # A label that was made but not yet written is made again: one in each thread that writes.
    made = job.made()
    assert COUNT <= made["depth"] <= COUNT + 2
    assert COUNT <= made["obj_detection"] <= COUNT + 2
    assert json.loads((tmp_path / "labels/skipped.json").read_text()) == {"reasons": {}, "photos": []}
    label_alone(photos, ["--output", tmp_path / "alone"], monkeypatch)
    assert len(expected := files(tmp_path / "alone")) == 3 * COUNT
    assert files(tmp_path / "labels") == expected
    assert not leases.Leases(tmp_path / "labels/.make_labels/leases").sweep()  # nobody holds any


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--output", "--output-dataset"])
def test_a_job_killed_and_started_with_other_numbers_of_processes(photos, tmp_path, start, monkeypatch, kind):
    job = start(photos, kind, str(tmp_path / "out"))
    for count, until in ((1, 10), (3, 30), (2, 60)):
        job.start(count)
        job.wait_for(until)
        job.kill(*range(count))
    job.start(3)
    job.end(0, 1, 2)
    label_alone(photos, [kind, tmp_path / "alone", "--shard-size", "8"], monkeypatch)
    if kind == "--output":
        assert files(tmp_path / "out") == files(tmp_path / "alone")
        assert job.made().total() <= 2 * COUNT + 2 * 6  # one in each thread of each process that was killed
        return
    found, expected = (records.load(tmp_path / name, task="all") for name in ("out", "alone"))
    assert len(found) == len(expected) == COUNT
    for i in range(COUNT):
        ours, theirs = found[i], expected[i]
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert job.made().total() <= 2 * COUNT + 6 * 3 * 8  # no more than the shards that the killed were at
    assert not list((tmp_path / "out/.make_labels/labels").iterdir())


@pytest.mark.slow
def test_processes_of_a_distributed_job_share_the_work(photos, tmp_path, start, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    job = start(photos, "--output", str(tmp_path / "labels"), environment=cluster)
    job.start(2, environments=[{"JAX_PROCESS_ID": "0"}, {"JAX_PROCESS_ID": "1"}])
    job.end(0, 1)
    assert job.made() == {"depth": COUNT, "obj_detection": COUNT}
    assert len({line.split()[1] for line in job.lines()}) == 2
    label_alone(photos, ["--output", tmp_path / "alone"], monkeypatch)
    assert files(tmp_path / "labels") == files(tmp_path / "alone")


def test_whatever_was_left_half_written_is_made_again(photos, tmp_path, monkeypatch):
    """A shard of labels and one of records that a crash has cut off, and files that were never finished."""
    out = tmp_path / "out"
    flags = ["--output-dataset", out, "--shard-size", "8"]
    label_alone(photos, flags, monkeypatch)
    (shard,) = out.glob("*.array_record-00002-of-00005")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    half = out / ".make_labels/labels/depth.000000016-000000024.zip"
    half.write_bytes(b"PK\3\4 cut off")
    (out / ".make_labels/job.json").write_text('{"settings": ')
    label_alone(photos, flags, monkeypatch)
    assert len(shard.read_bytes()) == len(whole)
    assert not half.exists()
    source = records.load(out, task="all")
    assert all(label_png.decode("depth", source[i]["labels/depth"]).shape == (30 + i % 3, 40, 1) for i in range(COUNT))
