"""Trains the arms of a study one after the other, each with several seeds: table, plot and results.json.

    python -m tools.sweep --config configs/experts.py --arms "all six: experts=all" "PrismerZ: experts=none" \\
        --seeds 0 1 2 --baselines "all six" PrismerZ --output runs/experts

An arm is "[NAME: ]WORDS": a word is the config's argument, as after the colon of FILE.py:arg, or a key of the config to
override, as in "fast: size=large config.optim.lr=3e-3". The seed is config.seed, which --seeds alone says. Every other
--config.key=value of the command line holds for all arms.

Each run is a program of its own with its own workdir, OUTPUT/<arm>/seed<n>. Started again the sweep skips what is
finished and goes on with what is not; a run that fails is named at the end and costs no other run. Runs that have seen
different data, as of a list that was edited between two seeds, are refused: they are no seeds of one study.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from prismer_jax import config, registry
from prismer_jax.datasets import data_seen
from prismer_jax.errors import UserError, choose, nearest, run_main
from prismer_jax.files import progress, storage
from prismer_jax.report import study
from prismer_jax.report.study import Results

OVERRIDE = "config."  # how a word of an arm begins that overrides a key


@dataclass(frozen=True)
class Arm:
    """One row of the study: its name in tables, the config's argument, and the keys it overrides ('optim.lr=3e-3')."""

    name: str
    argument: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of its folder: what it trains, and not how it is called, so that names may change."""
        return re.sub(r"[^\w.+=,-]", "_", " ".join(filter(None, (self.argument, *self.overrides)))) or "default"


@dataclass(frozen=True)
class Run:
    """One training: an arm with a seed."""

    arm: Arm
    seed: int
    spec: str  # FILE.py:arg
    overrides: tuple[str, ...]
    workdir: pathlib.Path

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def log(self) -> pathlib.Path:
        return self.workdir / "log.txt"

    @property
    def command(self) -> list[str]:
        """The training, as one would type it."""
        keys = [f"--config.{override}" for override in self.overrides]
        return [sys.executable, "-m", "prismer_jax.train", "--config", self.spec, "--workdir", str(self.workdir), *keys]

    @property
    def finished(self) -> float:
        """The time at which it finished."""
        return (self.workdir / "metrics.json").stat().st_mtime

    def results(self) -> dict[str, float] | None:
        """Its metrics, None while it is not finished: metrics.json is the last file that a training writes."""
        return storage.read_json(self.workdir / "metrics.json")  # which a kill may have cut off

    def data(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Returns what it saw, {(key of the config, all that its data depend on): examples and fingerprint}.

        Nothing of a run that is not finished, nor of one of an earlier version, which does not say.
        """
        seen = storage.read_json(self.workdir / data_seen.FILE)
        if self.results() is None or seen is None:
            return {}
        cfg, data = json.loads((self.workdir / "config.json").read_text()), {}
        for name, what in seen.items():
            group, dot, evaluator = name.partition(".")
            key = f"config.{name}.data" if dot else f"config.data.{name}"
            section = cfg[group][evaluator]["data"] if dot else cfg["data"][name]
            data[key, json.dumps([section, cfg.get("tokenizer")])] = what  # rows are packed by a tokenizer
        return data


def parse_arm(text: str) -> Arm:
    """Parses "[NAME: ]WORDS".

    Raises:
      UserError: two words that are no overrides.
    """
    name, colon, words = text.partition(": ")
    words = (words if colon else text).split()
    arguments = [word for word in words if not word.startswith(OVERRIDE)]
    if len(arguments) > 1:
        raise UserError(f"Arm {text!r} has two config arguments. Join them with commas; overrides begin with config.")
    overrides = tuple(word.removeprefix(OVERRIDE) for word in words if word.startswith(OVERRIDE))
    return Arm(name.strip() if colon else text.strip() or "default", *arguments or [""], overrides)


def plan(
    file: str,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    output: pathlib.Path,
    overrides: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> list[Run]:
    """Returns all runs, seeds in the outer loop: what is there when a sweep is stopped are whole comparisons.

    Every config is made once, so that a mistake in the last arm is found before the first run.

    Raises:
      UserError: an arm or a seed occurs twice, an override is the seed, a config cannot be made, a workdir holds the
        run of another one, finished runs saw different data, or a metric is of no evaluator of any arm.
    """
    for what, values in (
        ("Seed", list(seeds)),
        ("Arm", [arm.name for arm in arms]),
        ("Arm", [arm.folder for arm in arms]),
    ):
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{what} {value!r} is there twice. Leave one out.")
    for override in itertools.chain(overrides, *(arm.overrides for arm in arms)):
        key, _, value = override.partition("=")
        if key == "seed":
            raise UserError(f"config.seed={value}: the sweep sets the seed. Say --seeds {value} instead.")
    runs: list[Run] = []
    sections: dict[str, list[dict[str, Any]]] = {}  # of all arms, by the evaluator's name
    for seed in seeds:
        config.check_seed(seed)
        for arm in arms:
            spec = f"{file}{',' if ':' in file else ':'}{arm.argument}" if arm.argument else file
            keys = (*overrides, *arm.overrides, f"seed={seed}")
            run = Run(arm, seed, spec, keys, output / arm.folder / f"seed{seed}")
            settings = json.loads(config.to_json(config.strict(config.load(spec, keys))))
            if run.results() is not None and json.loads((run.workdir / "config.json").read_text()) != settings:
                raise UserError(f"{run.workdir} holds a finished run of another config. Use another --output.")
            runs.append(run)
            for name, section in settings.get("evals", {}).items():
                sections.setdefault(name, []).append(section)
    check_metrics(metrics, sections)
    check_data(runs)
    return runs


def check_metrics(metrics: Sequence[str], sections: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Checks that some arm's evaluator yields each metric, as far as its type says what it yields.

    Args:
      metrics: such as 'vqa/accuracy'.
      sections: {name of an evaluator: its section of the config, in each arm that has one}.

    Raises:
      UserError: no arm has an evaluator of that name, or it yields no such metric.
    """
    for metric in metrics:
        name, _, score = metric.partition("/")
        if name not in sections:
            raise UserError(f"Unknown metric {metric!r}: no arm has an evaluator {name!r}. {nearest(name, sections)}")
        scores = [score_names(section) for section in sections[name]]
        if all(scores) and score not in ("left_out", "unscored"):
            from prismer_jax import assembly  # jax, which a sweep needs for nothing else

            assembly.check_metric(
                metric, {name: SimpleNamespace(score_names=[*itertools.chain(*scores)])}, "of any arm"
            )


def score_names(section: Mapping[str, Any]) -> Sequence[str]:
    """Returns the names of the scores that an evaluator of a config yields, () where its type does not say them."""
    from prismer_jax.evaluators import EVALUATORS, caption

    cls = registry.imported("evaluator", section.get("type"), EVALUATORS)
    if getattr(cls, "metrics", None) is caption.CaptionEvaluator.metrics:
        return *caption.SCORES, *section.get("metrics", ())
    return cls.score_names


def check_data(runs: Sequence[Run]) -> None:
    """Checks that finished runs whose configs name the same data, to learn from or to be scored on, saw the same.

    Raises:
      UserError: they did not; names the older run.
    """
    first: dict[tuple[str, str], tuple[Run, dict[str, Any]]] = {}
    for run in runs:
        for what, seen in run.data().items():
            pair = [first.setdefault(what, (run, seen)), (run, seen)]
            if pair[0][1] == seen:
                continue
            (old, before), (new, now) = sorted(pair, key=lambda one: one[0].finished)
            raise UserError(
                f"{old.workdir}: saw other data of {what[0]} than {new.workdir} ({before['examples']} examples, there "
                f"{now['examples']}). Delete it, so that it is trained again, or use another --output."
            )


@contextlib.contextmanager
def locked(output: pathlib.Path) -> Iterator[int]:
    """Waits until nobody else trains in the folder; yields the lock, a file descriptor for a training to inherit.

    A training holds the lock as well as its sweep: where a sweep was killed, the next one lets its training end.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another training is under way in {output}; waiting for its end.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def train(run: Run, lock: int) -> str | None:
    """Trains in a program of its own, its output in WORKDIR/log.txt; returns None, or what went wrong."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        status = subprocess.run(run.command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)).returncode
    if status == 0 and run.results() is not None:
        return None
    lines = [line for line in run.log.read_text(errors="replace").split("\n") if line.strip()]
    return f"FAILED with exit status {status}: {lines[-1].strip() if lines else 'nothing was printed'}"


def sweep(
    runs: Sequence[Run], output: pathlib.Path, write: Callable[[Results, Mapping[str, str]], None]
) -> dict[str, str]:
    """Trains what is not finished, calls write(results, failed) after each run; returns {run: problem}."""
    failed: dict[str, str] = {}
    with locked(output) as lock:
        todo = [run for run in runs if run.results() is None]
        with progress.bar("sweep", len(runs), unit="runs", done=len(runs) - len(todo)) as advance:
            for run in todo:
                print(f"{run.name}: training, see {run.log}", flush=True)
                started = time.monotonic()
                if problem := train(run, lock):
                    failed[run.name] = problem
                print(f"{run.name}: {problem or 'done'}, {time.monotonic() - started:.0f} s", flush=True)
                write(collect(runs), failed)
                advance()
        write(collect(runs), failed)
    return failed


def collect(runs: Sequence[Run]) -> dict[str, dict[int, dict[str, float]]]:
    """{arm: {seed: {metric: value}}} of the runs that are finished; raises UserError if they saw different data."""
    check_data(runs)
    found: dict[str, dict[int, dict[str, float]]] = {run.arm.name: {} for run in runs}
    for run in runs:
        if (results := run.results()) is not None:
            found[run.arm.name][run.seed] = results
    return found


def write(
    output: pathlib.Path,
    metrics: Sequence[str],
    baselines: Sequence[str],
    runs: Sequence[Run],
    results: Results,
    failed: Mapping[str, str],
) -> None:
    """Writes results.json, and of the metrics (all, where none are named) results.md and results.png."""
    arms = {run.arm.name: {"argument": run.arm.argument, "overrides": run.arm.overrides} for run in runs}
    record = {"arms": arms, "results": results, "failed": failed, "made_with": config.provenance()}
    storage.write_json(output / "results.json", record)
    metrics = metrics or study.metrics_of(results)
    if not metrics:
        return
    tables = [study.table(results, metrics), *(study.differences(results, metrics, arm) for arm in baselines)]
    storage.write(output / "results.md", "\n".join(tables) + "\n")
    study.plot(output / "results.png", results, metrics, baselines)


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.sweep", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE.py, the config of all arms")
    parser.add_argument("--arms", nargs="+", required=True, metavar="ARM", help='"[NAME: ]WORDS", see above')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="values of config.seed")
    parser.add_argument("--output", required=True, type=storage.on_disk, help="workdirs and results.* go here")
    parser.add_argument("--metrics", nargs="+", default=[], help="shown in table and plot; all by default")
    parser.add_argument("--baselines", nargs="+", default=[], metavar="NAME", help="arms that others are compared with")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, and train nothing")
    args, overrides = parser.parse(argv)
    arms = [parse_arm(text) for text in args.arms]
    for name in args.baselines:
        choose("arm", name, {arm.name: arm for arm in arms})
    runs = plan(args.config, arms, args.seeds, args.output, overrides, args.metrics)
    if args.dry_run:
        for run in runs:
            print("to do   " if run.results() is None else "finished", shlex.join(run.command))
        return
    signal.signal(signal.SIGTERM, interrupt)
    failed = sweep(runs, args.output, functools.partial(write, args.output, args.metrics, args.baselines, runs))
    print(f"Table, plot and numbers: {args.output}/results.md, results.png, results.json")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed. {'; '.join(f'{k}: {v}' for k, v in failed.items())}"
        )
    names = {name for run in runs for name in run.results() or ()}
    for metric in args.metrics:
        if metric not in names:
            remedy = "Start again with it: no run is trained again."
            raise UserError(f"Unknown metric {metric!r}, a column of dashes. {nearest(metric, names)} {remedy}")


def interrupt(*_: Any) -> None:
    """Ends the sweep and its training as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_main(main)
