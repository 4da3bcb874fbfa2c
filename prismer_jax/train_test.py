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
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from prismer_jax import checkpoint, config, datasets, evaluators, metrics, runtime, sharding
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.errors import Preempted, Stopped, UserError, run_main
from prismer_jax.sharding import presets_test
from prismer_jax.testing import ROOT
from prismer_jax.train import Watch, loop, train, train_on
from prismer_jax.training.interrupts import Interrupts
from prismer_jax.training.step import Step

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


def test_a_run_that_was_preempted_before_an_evaluation_makes_it_first(monkeypatch, tmp_path):
    """Once: where a start ends after an evaluation, the next one does not repeat it."""
    cfg, cider = config.strict(unwatched()), iter((9.0, 8.0, 7.0))
    measured = {"weight": 1.0, "train/loss": 1.0, "train/grad_norm": 1.0, "tokens": 1}
    monkeypatch.setattr(evaluators, "run", lambda *_: {"caption/cider": next(cider)})

    def start(stop):
        monkeypatch.setattr(Interrupts, "after", lambda self, step: step == stop)
        saved = checkpoint.Checkpointer(tmp_path / "checkpoints", best_metric="caption/cider")
        watch = Watch(cfg, config.Workdir(tmp_path, tmp_path), {"caption": None}, {}, saved, 6, 1, time.monotonic())
        every, state = dict(evaluate=2, save=1), {"params": np.ones(2)}

        def update(state, batch):
            return state, {name: np.asarray(value) for name, value in measured.items()}

        with contextlib.suppress(Stopped):
            loop(update, state, itertools.repeat(None), watch, saved, every, lambda *_: None)
        return [line["step"] for line in metrics.read(tmp_path) if "caption/cider" in line], saved.best_step()

    assert start(stop=2) == ([], None)
    assert start(stop=3) == ([2], 2)
    assert start(stop=5) == ([2, 4], 2)
    shutil.rmtree(tmp_path / "checkpoints/5")
    assert start(stop=3) == ([2], 2)  # from step 2, which the best metric keeps
    cider = iter((8.0, 7.0))
    assert start(stop=None) == ([2, 4, 6], 2)


def test_scores_are_those_of_the_last_evaluation_alone(tmp_path):
    """A photo that was mended since is no longer left out."""
    saved = types.SimpleNamespace(latest_step=lambda: None)
    found = [{"caption/left_out": 1.0, "caption/cider": 1.0}, {"caption/cider": 2.0}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluators, "run", lambda *_: found.pop(0))
        cfg = config.strict(unwatched())
        with Watch(cfg, config.Workdir(tmp_path, tmp_path), {}, {}, saved, 9, 1, time.monotonic()) as watch:
            for step in (1, 2):
                watch.evaluate(step, {})
    assert watch.scores == {"caption/cider": 2.0}
    assert metrics.read(tmp_path)[-1] == {"step": 2, "caption/cider": 2.0}


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


def test_the_step_is_traced_as_the_caller_has_set_jax(monkeypatch, tmp_path):
    """JAX's context managers hold for one thread alone."""
    found = []

    def compiled(*_):
        found.append(jax.config.jax_default_matmul_precision)
        raise UserError("seen")

    monkeypatch.setattr(Step, "compile", compiled)
    with jax.default_matmul_precision("highest"), pytest.raises(UserError, match="seen"):
        train(unwatched(), tmp_path)
    assert found == ["highest"]


def test_an_export_without_checkpoints_is_of_another_run(finished, tmp_path):
    """A run that is killed before its own export would leave it, and every program prefers exports."""
    shutil.copytree(finished[0] / "export", tmp_path / "export")
    with pytest.raises(UserError, match=r"export is of a run whose checkpoints are gone\. Delete it, or"):
        train(unwatched("seed=7"), tmp_path)


def test_settings_of_the_end_are_checked_before_the_first_step(tmp_path):
    for section in ("report", "profile"):
        cfg = config.plain(load()) | {section: {"samplse": 3}}
        with pytest.raises(UserError, match=f"config.{section}: unknown key 'samplse'"):
            train(cfg, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        train(load(), tmp_path / "file")
    assert not losses(tmp_path)


def test_data_that_start_after_the_last_step_are_named(tmp_path, caplog):
    cfg = config.plain(load("checkpoint.best_metric=vqa/acuracy"))  # which ends the run before it compiles
    cfg["data"]["questions"]["start_steps"] = 6
    with pytest.raises(UserError, match="accuracy"):
        train(cfg, tmp_path)
    assert "config.data.questions starts at step 6 of 6: it is never seen." in caplog.text
    assert "captions" not in caplog.text


@pytest.mark.slow
def test_accumulated_and_frozen_training_runs(tmp_path):
    overrides = ("accumulate=2", "freeze=freeze_lang_vision", "total_steps=1", "mesh.data=4", "mesh.fsdp=2")
    train(unwatched(*overrides, arg="smoke,experts=depth+obj_detection"), tmp_path)
    assert math.isfinite(losses(tmp_path)[1])


def test_what_a_run_starts_from_is_looked_for_before_data_are_prepared(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load", None)
    with pytest.raises(UserError, match="nowhere does not exist: expected an exported model"):
        train(unwatched() | {"init": str(tmp_path / "nowhere")}, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_mean_over_no_row_is_not_written():
    written, watch = {}, mock.MagicMock(_log_steps=1, _schedules={}, first_step=0)
    watch._writer.write = lambda step, values: written.update(values)
    watch._pending = [(2, {"train/loss": 1.0, "train/grad_norm": 2.0, "train/targets/edge": math.nan})]
    watch._pending[0][1].update({"weight": 8.0, "tokens": 3})
    watch._progress.show.return_value = watch.pace.measure.return_value = {}
    Watch.settle(watch)
    assert written == {"train/loss": 1.0, "train/grad_norm": 2.0}


def test_a_loss_that_is_not_finite_names_its_step_and_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"loss is nan at step \d"):
        train(unwatched("optim.lr=1e38", "optim.clip_norm=None", "optim.warmup_percent=0.0", arg="z,smoke"), tmp_path)
    steps = [int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert all(math.isfinite(losses(tmp_path)[step]) for step in steps)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_a_run_before_what_it_spoiled_is_saved(norm):
    """The loss is still that of the parameters before: it says so a step later, when the good checkpoint is gone."""
    watch = mock.MagicMock(first_step=0, _log_steps=9, total_steps=9)
    watch._checkpoints.latest_step.return_value = 4
    watch._pending = [(8, {"train/loss": 1.0, "train/grad_norm": norm, "weight": 8.0, "tokens": 3})]
    watch.settle = lambda: Watch.settle(watch)
    with pytest.raises(UserError, match=f"loss is 1.0 at step 8; its gradient's norm is {norm}; .* of step 4. Lower"):
        Watch.keep(watch)


@pytest.mark.parametrize(("normalize", "loss"), [("batch", "nan"), pytest.param("none", "0.0", marks=pytest.mark.slow)])
def test_a_batch_of_prompts_alone_is_named_as_that(normalize, loss, tmp_path):
    """Its loss is 0 / 0, or that of no tokens, whatever the rate."""
    cfg = unwatched(f"loss.normalize={normalize}", "batch_size=8", arg="z,smoke")
    for part in cfg["data"].values():
        part |= dict(pp=cfg["tasks"]["caption"]["pp"], count=8)
    with pytest.raises(UserError, match=rf"{loss} at step 1; .*step None\. No token of this batch is to be learnt"):
        train(cfg, tmp_path)


def test_a_batch_of_which_nothing_is_learnt_ends_no_run_that_is_under_way(tmp_path):
    """It may well be the first one after a stop."""
    measured, cfg = {"weight": 0.0, "train/loss": 0.0, "train/grad_norm": 0.0, "tokens": 0}, config.strict(unwatched())
    for last, step, ends in ((None, 1, pytest.raises(UserError, match="No token")), (3, 4, contextlib.nullcontext())):
        saved = types.SimpleNamespace(latest_step=lambda last=last: last)
        watch = Watch(cfg, config.Workdir(tmp_path, tmp_path), {}, {}, saved, 9, 1, time.monotonic())
        with watch, ends:
            watch.note(step, {name: np.asarray(value) for name, value in measured.items()})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=12"], "cannot be shared by 8 devices; use 8 or 16"),
        (["seed=-1"], "seed=-1: must be a whole number from 0 to 4294967295"),
        (["seed=99999999999999999999"], "seed=99999999999999999999: must be a whole number"),
        (["seed=None"], "seed=None: must be a whole number"),
        (["save_steps=0"], "'save_steps' must be a number above 0, not 0"),
        (["log_steps=0"], "'log_steps' must be a number above 0"),
        (["batch_size=None"], "config.batch_size is None; it must be a whole number"),
        (["tokenizer=None"], "config.tokenizer is None; it must be a text"),
        (["data.captions.pp=None"], "config.data.captions.pp is None; it must be a text"),
        (["optim.lr=None"], "config.optim.lr is None; it must be a number"),
        (["checkpoint.keep=None"], "config.checkpoint.keep is None; it must be a whole number"),
        (["model.dtype=bfloat17"], "Unknown config.model.dtype 'bfloat17'. Did you mean 'bfloat16'"),
        (["profile.first=-1"], "config.profile: {'first': -1}; first is a step"),
        (["num_workers=-1"], "num_workers=-1: must be from 0, which loads in threads"),
        (["num_workers=1000000"], f"to {16 * runtime.cores()}. One for each of the {runtime.cores()} cores"),
        (["model.image_size=0"], "image_size=0 must be at least patch_size=16"),
        (["model.image_size=-16"], "image_size=-16 must be at least"),
        (["model.image_size=112"], "The ops make photos of (96, 96), but model.image_size is 112"),
        (["accumulate=0"], "accumulate=0: must be at least 1"),
        (["optim.lr=-1.0"], "lr=-1.0, weight_decay=0.05, clip_norm=1.0: two are >= 0"),
        (["optim.weight_decay=-0.1"], "weight_decay=-0.1, clip_norm=1.0: two are >= 0"),
        (["optim.clip_norm=0.0"], "clip_norm=0.0: two are >= 0, clip_norm is > 0 or None"),
        (["optim.clip_norm=-1.0"], "clip_norm=-1.0: two are >= 0, clip_norm is > 0"),
        (["loss.label_smoothing=1.0"], "label_smoothing=1.0: must be at least 0 and less than 1"),
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


@pytest.fixture(scope="module")
def prismer():
    """A training of 20 steps of Prismer with all experts, BatchNorm in their stems, dropout, and frozen towers."""
    cfg = unwatched("total_steps=20", "save_steps=20", "freeze=freeze_lang_vision")
    cfg["model"]["decoder"] = dict(dropout=0.1)
    return cfg


@pytest.fixture(scope="module")
def of_one_device(prismer, tmp_path_factory):
    """Its losses on a mesh of one device."""
    workdir, mesh = tmp_path_factory.mktemp("one"), sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        cfg = config.strict(
            {key: prismer[key] for key in prismer if key not in ("mesh", "distributed")}
        )  # `train` reads them
        train_on(mesh, cfg, config.Workdir(workdir, workdir), time.monotonic(), False)
    return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "axes"), presets_test.PRESETS)
def test_prismer_with_its_experts_has_the_losses_of_one_device_by_every_preset(
    spec, axes, prismer, of_one_device, tmp_path
):
    mesh = {axis: axes.get(axis, 1) for axis in sharding.AXES}
    train(prismer | dict(sharding=spec, mesh=mesh), tmp_path)
    assert len(of_one_device) == 20
    assert losses(tmp_path) == pytest.approx(of_one_device, rel=1e-4)


def test_a_workdir_belongs_to_one_config(finished):
    with pytest.raises(UserError, match="belongs to another config"):
        train(load("optim.lr=0.5"), finished[0])


def start(
    workdir: pathlib.Path,
    *more: str,
    file: str | pathlib.Path = "configs/quickstart.py",
    program: Sequence[str] = ("-m", "prismer_jax.train"),
) -> subprocess.Popen:
    overrides = [f"--config.{o}" for o in (*SMALL, "log_steps=1", "save_steps=2", *more)]
    command = [sys.executable, *program, "--config", f"{file}:smoke"]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Trains, and writes down when which phase begins; a checkpoint is written in the background of the steps after it.
ANNOUNCED = """
import sys, time
from prismer_jax import checkpoint, evaluators, train
from prismer_jax.errors import run_main

def announced(owner, name, phase):
    function = getattr(owner, name)
    def call(*args, **kwargs):
        with open(sys.argv[1], "a") as file:
            print(phase, time.time(), file=file)
        return function(*args, **kwargs)
    setattr(owner, name, call)

announced(train.Watch, "note", "training")
announced(checkpoint.Checkpointer, "save", "saving")
announced(evaluators, "run", "evaluating")
announced(checkpoint, "export", "exporting")
run_main(train.main, sys.argv[2:])
"""
EVALUATED = """
from configs import quickstart

def get_config(arg=None):
    config = quickstart.get_config(arg)
    config.evaluate_steps = 4
    return config
"""
PHASES = ("starting", "training", "saving", "evaluating", "exporting")
KILLS = int(os.environ.get("PRISMER_TEST_KILLS", "10"))


@pytest.mark.slow
def test_kill_9_in_every_phase_ends_in_the_same_parameters(tmp_path):
    """As many kills as PRISMER_TEST_KILLS says, at random moments; each phase is aimed at as often as any other."""

    def begin(workdir):
        file = tmp_path / f"{workdir.name}.phases"
        file.write_text(f"starting {time.time()}\n")
        return start(workdir, file=tmp_path / "evaluated.py", program=["-c", ANNOUNCED, str(file)]), file

    def announced(file):
        return [(phase, float(moment)) for phase, moment in map(str.split, file.read_text().splitlines())]

    def outcome(workdir):
        return fingerprint(checkpoint.load_export(workdir / "export")[0]), losses(workdir)

    (tmp_path / "evaluated.py").write_text(EVALUATED)
    for name in ("first", "whole"):  # the first fills the caches
        process, file = begin(tmp_path / name)
        assert process.wait() == 0, process.stderr.read()
    spans = [*itertools.pairwise(announced(file)), (announced(file)[-1], ("", time.time()))]
    seconds = {  # from the first beginning of a phase to its last end
        phase: max(end for (name, _), (_, end) in spans if name == phase)
        - min(began for (name, began), _ in spans if name == phase)
        for phase in PHASES
    }
    draw, aims, reached = random.Random(0), itertools.cycle(PHASES), collections.Counter()
    for run in itertools.count():
        workdir = tmp_path / str(run)
        while reached.total() < KILLS:
            (process, file), aim = begin(workdir), next(aims)
            while process.poll() is None and aim not in dict(announced(file)):
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert process.wait(timeout=draw.uniform(0, seconds[aim])) == 0, process.stderr.read()
                break  # it had ended before
            process.send_signal(signal.SIGKILL)
            process.wait()
            saving = any(".orbax-checkpoint-tmp" in path.name for path in workdir.glob("checkpoints/*"))
            reached["saving" if saving else announced(file)[-1][0]] += 1
        else:
            process, _ = begin(workdir)
            assert process.wait() == 0, process.stderr.read()
        assert outcome(workdir) == outcome(tmp_path / "whole"), reached
        if reached.total() == KILLS:
            break
    print("kills by phase:", sorted(reached.items()), "in", run + 1, "runs of", f"{seconds}")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_ctrl_c_ends_in_one_line_and_status_2(tmp_path, attempt):
    process = start(tmp_path, f"num_workers={attempt}")
    wait_for(lambda: len(losses(tmp_path)) > 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 2
    assert process.stderr.read().strip().splitlines()[-1].startswith("interrupted")
