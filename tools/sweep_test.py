"""The sweep with trainings of no work; slow: with real ones."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from prismer_jax import config
from prismer_jax.datasets import data_seen
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT
from tools import sweep

CONFIG = """
from ml_collections import ConfigDict
from prismer_jax.config import parse_arg

def get_config(arg=None):
    arg = parse_arg(arg, good=1.0, fail=False, wait="")
    data = {"web": {"name": "lists"}}
    kinds = {"a": "answers", "vqa": "vqa", "said": "caption"}  # what the first yields depends on its score
    evals = {name: {"type": kind, "data": {"name": "lists"}} for name, kind in kinds.items()}
    return ConfigDict(dict(seed=0, lr=0.1, good=arg.good, fail=arg.fail, wait=arg.wait, data=data, evals=evals))
"""

# Stands for prismer_jax.train: its score is known, it can fail, and it can wait until a file is there.
TRAINER = """
import json, os, sys, time
workdir, cfg = sys.argv[1], json.loads(sys.argv[2])
with open(workdir + "/config.json", "w") as file:
    json.dump(cfg, file)
with open(workdir + "/starts", "a") as file:
    file.write("x")
while cfg["wait"] and not os.path.exists(cfg["wait"]):
    time.sleep(0.02)
if cfg["fail"]:
    sys.exit("error: the loss is nan")
with open(workdir + "/metrics.json", "w") as file:
    json.dump({"a/score": 10 * cfg["good"] + cfg["seed"], "a/score_blank": 0.0}, file)
"""


def stand_in(run: sweep.Run) -> list[str]:
    """The command of a training that does nothing."""
    used = config.to_json(config.load(run.spec, run.overrides))
    return [sys.executable, "-I", "-S", "-c", TRAINER, str(run.workdir), used]


def start(folder, *arguments) -> subprocess.Popen:
    """A sweep in a program of its own, which can be killed."""
    program = "from tools import sweep, sweep_test; from prismer_jax.errors import run_main\n"
    program += "sweep.Run.command = property(sweep_test.stand_in)\nrun_main(sweep.main)"
    words = [sys.executable, "-c", program, "--config", str(folder / "config.py"), *arguments]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run(files, monkeypatch, capsys):
    """Sweeps in this process; returns what is printed."""
    monkeypatch.setattr(sweep.Run, "command", property(stand_in))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments):
        sweep.main(["--config", str(files / "config.py"), "--output", str(files / "out"), *arguments])
        return capsys.readouterr().out

    return run


def starts(workdir: pathlib.Path) -> int:
    return len((workdir / "starts").read_text()) if (workdir / "starts").exists() else 0


def results(folder):
    return json.loads((folder / "out/results.json").read_text())


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def trained(out: str) -> list[str]:
    return [line.split(": training, see ")[0] for line in out.split("\n") if ": training, see " in line]


def test_trains_all_arms_with_all_seeds_and_compares_them(files, run):
    out = run("--arms", "one: good=1", "two: good=2 config.lr=0.2", "--seeds", "0", "2", "--baselines", "one")
    assert trained(out) == ["one, seed 0", "two, seed 0", "one, seed 2", "two, seed 2"]
    record = results(files)
    assert record["results"]["two"]["2"] == {"a/score": 22.0, "a/score_blank": 0.0}
    assert record["arms"]["two"] == {"argument": "good=2", "overrides": ["lr=0.2"]}
    assert record["failed"] == {}
    text = (files / "out/results.md").read_text()
    assert "| one | 2 | 11.0 ± 1.4 |" in text
    assert "| two | +10.0 (+10.0 to +10.0) |" in text
    assert "blank" not in text
    assert (files / "out/results.png").read_bytes().startswith(b"\x89PNG")
    used = json.loads((files / "out/good=2_lr=0.2/seed2/config.json").read_text())
    assert (used["lr"], used["seed"], used["good"]) == (0.2, 2, 2.0)


def test_what_is_finished_is_not_trained_again_under_any_name(files, run):
    run("--arms", "one: good=1", "--seeds", "0")
    assert trained(run("--arms", "uno: good=1", "three: good=3", "--seeds", "0")) == ["three, seed 0"]
    assert starts(files / "out/good=1/seed0") == 1
    assert list(results(files)["results"]) == ["uno", "three"]


def test_a_failed_arm_costs_no_other_and_is_named_and_tried_again(files, run):
    with pytest.raises(UserError, match=r"1 of 2 runs failed.*bad, seed 0: FAILED with exit status 1: error: the loss"):
        run("--arms", "bad: fail", "fine: good=1", "--seeds", "0")
    record = results(files)
    assert record["results"] == {"bad": {}, "fine": {"0": {"a/score": 10.0, "a/score_blank": 0.0}}}
    assert list(record["failed"]) == ["bad, seed 0"]
    assert "| bad | 0 | – |" in (files / "out/results.md").read_text()
    with pytest.raises(UserError, match="1 of 2 runs failed"):
        run("--arms", "bad: fail", "fine: good=1", "--seeds", "0")
    assert starts(files / "out/fail/seed0") == 2
    assert starts(files / "out/good=1/seed0") == 1


def test_a_torn_result_is_not_taken_for_a_finished_run(files, run):
    run("--arms", "good=1", "--seeds", "0")
    torn = files / "out/good=1/seed0/metrics.json"
    torn.write_text(torn.read_text()[:-5])
    run("--arms", "good=1", "--seeds", "0")
    assert starts(torn.parent) == 2
    assert results(files)["results"]["good=1"]["0"]["a/score"] == 10.0


def test_goes_on_after_kill_9_once_the_training_left_behind_has_ended(files):
    gate, out = files / "gate", files / "out"
    arms = ("a: good=1", f"b: good=2,wait={gate}", "c: good=3")
    arguments = ("--arms", *arms, "--seeds", "0", "--output", str(out))
    workdirs = [run.workdir for run in sweep.plan(f"{files}/config.py", [sweep.parse_arm(a) for a in arms], [0], out)]
    first = start(files, *arguments)
    wait_for(lambda: starts(workdirs[1]))
    first.kill()
    first.communicate()
    second = start(files, *arguments)
    assert second.stderr.readline().startswith("Another training is under way in")
    gate.touch()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert trained(said) == ["c, seed 0"]
    assert [starts(workdir) for workdir in workdirs] == [1, 1, 1]
    assert results(files)["results"]["b"]["0"]["a/score"] == 20.0


def test_sigterm_ends_the_sweep_and_its_training(files):
    process = start(files, "--arms", f"wait={files / 'never'}", "--output", str(files / "out"))
    wait_for(lambda: list((files / "out").glob("*/seed0/starts")))
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.strip() == "interrupted: stopped by Ctrl-C; what was saved before stays valid."
    with sweep.locked(files / "out"):  # would wait for ever for a training that goes on
        pass


def test_dry_run_says_the_commands_and_leaves_nothing(files, capsys):
    arm = "good=1 config.lr=3"
    where = ["--config", f"{files}/config.py", "--output", f"{files}/out"]
    sweep.main([*where, "--arms", arm, "--seeds", "1", "--dry-run", "--config.lr=7"])
    said = capsys.readouterr().out.split()
    assert said[:2] == ["to", "do"]
    assert said[3:6] == ["-m", "prismer_jax.train", "--config"]
    assert said[-3:] == ["--config.lr=7", "--config.lr=3", "--config.seed=1"]  # the last one counts
    assert not (files / "out").exists()


def test_a_run_without_metrics_is_finished(tmp_path, monkeypatch, capsys):
    run = sweep.Run(sweep.parse_arm("good=1"), 0, "config.py", (), tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    monkeypatch.setattr(sweep, "plan", lambda *_: [run])
    sweep.main(["--config", "config.py", "--arms", "good=1", "--output", str(tmp_path), "--dry-run"])
    assert capsys.readouterr().out.startswith("finished")


def test_an_arm_joins_the_configs_own_argument(tmp_path):
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\nfrom prismer_jax.config import parse_arg\n"
        "def get_config(arg=None):\n    return ConfigDict({**vars(parse_arg(arg, a=1, b=1)), 'seed': 0})\n"
    )
    (run,) = sweep.plan(f"{tmp_path}/config.py:a=2", [sweep.parse_arm("b=3")], [0], tmp_path / "out")
    assert run.spec.endswith("config.py:a=2,b=3")


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["good=1 fail"], "two config arguments"),
        (["a: good=1", "a: good=2"], "Arm 'a' is there twice"),
        (["a: good=1", "b: good=1"], "Arm 'good=1' is there twice"),
        (["good=1", "goood=2"], "Did you mean 'good'"),
        (["good=1 config.learning=2"], "No config key 'learning'"),
        (["good=1", "--baselines", "x"], "Unknown arm 'x'"),
        (["good=1", "--seeds", "1", "1"], "Seed 1 is there twice"),
        (["good=1", "--seeds", "-1"], r"seed=-1: must be a whole number from 0"),
        (["good=1 config.wandb=x"], r"config\.wandb is 'x'; it must be a section"),
        (["good=1 config.seed=3"], r"config\.seed=3: the sweep sets the seed\. Say --seeds 3 instead"),
        (["good=1", "--config.seed=3"], r"config\.seed=3: the sweep sets the seed\. Say --seeds 3 instead"),
    ],
)
def test_mistakes_are_found_before_the_first_run(files, run, arms, message):
    with pytest.raises(UserError, match=message):
        run("--arms", *arms)
    assert not (files / "out").exists()


def test_an_unknown_metric_is_an_error_that_costs_no_run(files, run):
    arguments = ["--arms", "one: good=1", "--seeds", "0"]
    with pytest.raises(UserError, match=r"'vqq/accuracy': no arm has an evaluator 'vqq'\. Did you mean 'vqa'"):
        run(*arguments, "--metrics", "vqq/accuracy")
    for metric, likely in (("vqa/acuracy", "vqa/accuracy"), ("said/cidr", "said/cider"), ("vqa/cider", "vqa/accuracy")):
        with pytest.raises(UserError, match=rf"No metric '{metric}' of any arm\. .*{likely}"):
            run(*arguments, "--metrics", metric)
    assert not (files / "out").exists()
    with pytest.raises(UserError, match=r"Unknown metric 'a/scor', .* Did you mean 'a/score'\?"):
        run(*arguments, "--metrics", "a/scor")
    run(*arguments, "--metrics", "a/score", "a/score_blank")
    assert starts(files / "out/good=1/seed0") == 1
    assert "a/score_blank" in (files / "out/results.md").read_text()


def test_a_folder_with_runs_of_another_config_is_refused(files, run):
    run("--arms", "good=1", "--seeds", "0")
    with pytest.raises(UserError, match="holds a finished run of another config"):
        run("--arms", "good=1", "--seeds", "0", "--config.lr=0.5")


@pytest.mark.parametrize("changed", ["web", "evals.vqa"])
def test_runs_that_saw_other_data_are_not_averaged(files, run, changed):
    def see(seed, name, count, arm="good=1"):
        path = files / f"out/{arm}/seed{seed}/{data_seen.FILE}"
        seen = {"web": 9, "evals.vqa": 9} | {name: count}
        path.write_text(json.dumps({name: {"examples": n, "fingerprint": f"{n}"} for name, n in seen.items()}))

    run("--arms", "one: good=1", "--seeds", "0", "1")
    run("--arms", "two: good=2", "--seeds", "0")
    see(0, changed, 9)
    see(1, changed, 9)
    run("--arms", "one: good=1", "--seeds", "0", "1", "2")  # whose trainer leaves no such file, as earlier versions did
    before = (files / "out/results.md").read_text()
    os.utime(files / "out/good=1/seed1/metrics.json", (1, 1))  # the older one is named
    see(0, changed, 8)
    section = {"web": "config.data.web", "evals.vqa": "config.evals.vqa.data"}[changed]
    message = rf"out/good=1/seed1: saw other data of {section} than .*/seed0 \(9 examples, there 8\)\. Delete it"
    with pytest.raises(UserError, match=message) as error:
        run("--arms", "one: good=1", "--seeds", "0", "1", "3")
    assert "\n" not in str(error.value)
    assert not (files / "out/good=1/seed3").exists()
    assert (files / "out/results.md").read_text() == before
    see(1, changed, 8)
    see(0, changed, 7, "good=2")  # an arm's rows stand beside another's
    with pytest.raises(UserError, match=section):
        run("--arms", "one: good=1", "two: good=2", "--seeds", "0")
    shutil.rmtree(files / "out/good=2/seed0")
    run("--arms", "one: good=1", "two: good=2", "--seeds", "0", "1")


def test_the_run_that_sees_other_data_ends_the_sweep(files, run, monkeypatch):
    def trained(one, lock, train=sweep.train):
        problem = train(one, lock)
        (one.workdir / data_seen.FILE).write_text(json.dumps({"web": {"examples": 5, "fingerprint": str(one.seed)}}))
        return problem

    monkeypatch.setattr(sweep, "train", trained)
    with pytest.raises(
        UserError, match=r"seed0: saw other data of config.data.web than .*seed1 \(5 examples, there 5\)"
    ):
        run("--arms", "one: good=1", "--seeds", "0", "1", "2")
    assert not (files / "out/good=1/seed2").exists()
    assert list(results(files)["results"]["one"]) == ["0"]


@pytest.mark.slow
def test_sweeps_the_studies_of_experts(tmp_path):
    arms = ("none: smoke,experts=none", "noise: smoke,experts=depth,noise=depth")
    overrides = ("--config.total_steps=3", "--config.log_steps=1")
    sweep.main(
        [
            "--config",
            f"{ROOT}/configs/experts.py",
            "--arms",
            *arms,
            "--seeds",
            "0",
            "--output",
            str(tmp_path),
            *overrides,
        ]
    )
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    for arm in ("none", "noise"):
        assert 0 <= found[arm]["0"]["vqa/accuracy"] <= 100
    assert "vqa/accuracy" in (tmp_path / "results.md").read_text()
