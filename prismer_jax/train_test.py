"""The loop end to end on the quickstart's smoke config: learning, resuming, stopping; slow: kill -9, whole runs."""

import asyncio
import collections
import contextlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ml_collections import ConfigDict

from prismer_jax import checkpoint, config, metrics
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.errors import Preempted, UserError, run_main
from prismer_jax.sharding import presets_test
from prismer_jax.testing import ROOT
from prismer_jax.train import Watch, train

SMALL = ("total_steps=6",)


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
    os.environ["PRISMER_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))
    yield
    del os.environ["PRISMER_DATA_DIR"]


def load(*overrides, arg="smoke"):
    small = (*SMALL, "log_steps=1", "save_steps=3")
    return config.load(f"{ROOT / 'configs/quickstart.py'}:{arg}", [*small, *overrides])


def unwatched(*overrides, arg="smoke"):
    """The same without evaluations, which take the most time to compile."""
    return config.plain(load("checkpoint.best_metric=None", *overrides, arg=arg)) | {"evals": {}}


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in metrics.read(workdir) if "train/loss" in line}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its results."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(load(), workdir)


def test_leaves_behind_what_a_user_looks_for(finished):
    workdir, results = finished
    saved = json.loads((workdir / "metrics.json").read_text())
    assert saved == results
    for name in ("caption/cider", "caption/cider_blank", "vqa/accuracy", "vqa/accuracy_blank"):
        assert math.isfinite(saved[name])
    assert "vqa/accuracy_most_frequent" in saved
    assert list(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    for name in ("report.html", "report.png", "curves.png", "config.json", "versions.json", "metrics.csv"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "export" / "config.json").exists()
    captions = json.loads((workdir / "predictions" / "caption.json").read_text())
    assert {"image_id", "caption"} == captions[0].keys()


def test_resumed_run_has_bitwise_the_losses_of_an_uninterrupted_one(finished, tmp_path):
    class Stop(Exception):
        pass

    def interrupt(self, step, values, write=metrics.Writer.write):
        write(self, step, values)
        if step == 5:  # two steps after the checkpoint
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Writer, "write", interrupt)
        with pytest.raises(Stop):
            train(unwatched(), tmp_path)
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5]
    train(unwatched("num_workers=0"), tmp_path)
    assert losses(tmp_path) == losses(finished[0])


def test_an_interrupt_saves_the_step_and_gives_the_handlers_back(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupted(self, step, measured, note=Watch.note):
        note(self, step, measured)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "note", interrupted)
        with pytest.raises(Preempted, match="step 2 is saved"):
            train(unwatched(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")] == ["2"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_preempted_program_has_a_status_of_its_own(capsys):
    def main(error):
        raise error

    for error, status in ((Preempted("step 3 is saved."), 75), (KeyboardInterrupt(), 2)):
        with pytest.raises(SystemExit) as left:
            run_main(main, error)
        assert left.value.code == status
    assert capsys.readouterr().err.splitlines()[0] == "preempted: step 3 is saved."


@pytest.mark.slow
def test_a_dict_a_text_for_the_workdir_a_thread_and_a_running_event_loop_do(tmp_path):
    """As in a notebook, whose kernel runs an event loop; a web application would train in a thread."""
    cfg = ConfigDict(unwatched("total_steps=1"))

    async def cell():
        return train(cfg, str(tmp_path / "run"))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, cell()).result()
    assert math.isfinite(losses(tmp_path / "run")[1])
    assert (tmp_path / "run" / "export" / "config.json").exists()


def test_settings_of_the_end_are_checked_before_the_first_step(tmp_path):
    for section in ("report", "profile"):
        cfg = config.plain(load()) | {section: {"samplse": 3}}
        with pytest.raises(UserError, match=f"config.{section}: unknown key 'samplse'"):
            train(cfg, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        train(load(), tmp_path / "file")
    assert not losses(tmp_path)


@pytest.mark.slow
def test_accumulated_and_frozen_training_runs(tmp_path):
    overrides = ("accumulate=2", "freeze=freeze_lang_vision", "total_steps=1", "mesh.data=4", "mesh.fsdp=2")
    train(unwatched(*overrides, arg="smoke,experts=depth+obj_detection"), tmp_path)
    assert math.isfinite(losses(tmp_path)[1])


def test_a_loss_that_is_not_finite_names_its_step_and_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"loss is nan at step \d"):
        train(unwatched("optim.lr=1e38", "optim.clip_norm=None", "optim.warmup_percent=0.0", arg="z,smoke"), tmp_path)
    steps = [int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert all(math.isfinite(losses(tmp_path)[step]) for step in steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=12"], "cannot be shared by 8 devices; use 8 or 16"),
        (["optim.name=adamv"], "Did you mean 'adamw'"),
        (["model.name=prismr"], "Did you mean 'prismer'"),
        (["model.variant=tiny"], "raise it"),
        (["freeze=freeze_visoin"], "Did you mean 'freeze_vision'"),
        (["checkpoint.best_metric=vqa/acuracy"], "Did you mean 'vqa/accuracy'"),
        (["checkpoint.best_metric=captoin/cider_blank"], "Did you mean 'caption/cider'"),
    ],
)
def test_bad_configs_say_what_is_wrong(overrides, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        train(load(*overrides), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "axes"), presets_test.PRESETS)
def test_prismer_with_its_experts_has_the_same_losses_by_every_preset(spec, axes, finished, tmp_path):
    mesh = [f"mesh.{axis}={axes.get(axis, 1)}" for axis in ("data", "fsdp", "tensor")]
    train(unwatched(f"sharding={spec}", *mesh), tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(finished[0]), rel=1e-4)


def test_a_workdir_belongs_to_one_config(finished):
    with pytest.raises(UserError, match="belongs to another config"):
        train(load("optim.lr=0.5"), finished[0])


def start(workdir: pathlib.Path, *more: str) -> subprocess.Popen:
    overrides = [f"--config.{o}" for o in (*SMALL, "log_steps=1", "save_steps=2", *more)]
    command = [sys.executable, "-m", "prismer_jax.train", "--config", "configs/quickstart.py:smoke"]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_9_at_any_moment_ends_in_the_same_parameters(tmp_path):
    def outcome(workdir):
        return fingerprint(checkpoint.load_export(workdir / "export")[0]), losses(workdir)

    assert start(tmp_path / "first").wait() == 0  # fills the caches
    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds, draw = time.monotonic() - began, random.Random(0)
    reached = collections.Counter()  # kills by the number of steps that had been logged
    for run in itertools.count():
        workdir = tmp_path / str(run)
        while reached.total() < 30:
            process = start(workdir)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert process.wait(timeout=draw.uniform(0.2, 1.1) * seconds) == 0, process.stderr.read()
                break  # it had ended before
            process.send_signal(signal.SIGKILL)
            process.wait()
            reached[len(losses(workdir))] += 1
        else:
            assert start(workdir).wait() == 0
        assert outcome(workdir) == outcome(tmp_path / "whole"), reached
        if reached.total() == 30:
            break
    print("kills by steps that had been logged:", sorted(reached.items()))


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_ctrl_c_ends_in_one_line_and_status_2(tmp_path, attempt):
    process = start(tmp_path, f"num_workers={attempt}")
    wait_for(lambda: len(losses(tmp_path)) > 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 2
    assert process.stderr.read().strip().splitlines()[-1].startswith("interrupted")
