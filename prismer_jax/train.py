"""The training loop: python -m prismer_jax.train --config FILE.py[:arg] --workdir DIR [--config.key=value ...]

One script for every model, data set and task: the config names them, this file wires them together, top to bottom.
Started again with the same workdir it goes on from the last checkpoint, and its losses are bitwise those of a run that
was never interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from prismer_jax import assembly, checkpoint, config, evaluators, input, metrics, pp, runtime, sharding
from prismer_jax.datasets import data_seen
from prismer_jax.errors import Preempted, Stopped, UserError, run_main
from prismer_jax.files import storage
from prismer_jax.report import results
from prismer_jax.training.interrupts import Interrupts
from prismer_jax.training.pace import Pace
from prismer_jax.training.step import NO_VARIABLES, make_step

# Keys that may differ between two starts in one workdir: what is watched and kept, not what is learnt.
MAY_CHANGE = (
    "(log|evaluate|save)_.*",
    r"(mesh|sharding|evals|checkpoint|report|wandb|profile)\b.*",
    "num_workers",
    "distributed",
)


def train(
    cfg: config.Section | Mapping[str, Any],
    workdir: storage.PathLike,
    allow_changed_data: bool = False,
) -> dict[str, float]:
    """Trains as the config says, in `workdir`; returns the last value of every evaluation metric.

    Args:
      cfg: what `config.load` returns, a ConfigDict or a dict.
      workdir: a folder for checkpoints, metrics and the report, also of a bucket, gs://; made if need be.
      allow_changed_data: go on with a run although its data are no longer those that it began with.

    Raises:
      UserError: the config, the data or the workdir cannot be used, or the loss or its gradient is no longer finite.
      Stopped: SIGINT came; the step was finished and, by a single process, saved first.
      Preempted: SIGTERM came, to one process at least; all of them finished the same step and saved it.
    """
    started = time.monotonic()
    cfg = config.strict(cfg)
    runtime.use_compilation_cache()
    runtime.use_xla_sums()
    sharding.initialize_distributed(cfg.get("distributed"))
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    try:
        with jax.set_mesh(mesh), config.locked_workdir(storage.folder(workdir), jax.process_index() == 0) as place:
            return train_on(mesh, cfg, place, started, allow_changed_data)
    except KeyboardInterrupt as error:  # it says nothing if it came before the first step
        raise error if error.args else Stopped("what was saved before stays; the same call goes on.") from None


def train_on(
    mesh: jax.sharding.Mesh, cfg: config.Section, workdir: config.Workdir, started: float, allow_changed_data: bool
) -> dict[str, float]:
    """`train` on a mesh, which is set, `started` by time.monotonic(): from the config to all that `loop` needs."""
    # -------------------------------------------------------------------------------------------------------- workdir
    sharding.check_batch(cfg.batch_size, mesh, cfg.get("accumulate", 1))
    config.check_seed(cfg.seed)
    config.check_workers(cfg.get("num_workers", 0))
    if jax.process_count() > 1:
        importlib.import_module("prismer_jax.sharding.processes").check_start(cfg, workdir)
    if cfg.get("init") is not None and not workdir.has_checkpoints():
        checkpoint.find(cfg.init)  # which is read last, long after data are prepared
    config.save_resolved(workdir, cfg, MAY_CHANGE)

    # ------------------------------------------------------------------------------------------------------------ data
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    mixture = assembly.load_mixture(cfg.data, tokenizer, config.plain(cfg.model.get("experts", "none")))
    durations: dict[str, Any] = dict(batch_size=cfg.batch_size, num_examples=sum(part["size"] for part in mixture))
    durations["total_steps"] = total_steps = config.steps(cfg, "total", **durations)
    for part in mixture:
        part["start"] = first = config.steps(cfg.data[part["name"]], "start", default=0, **durations)
        if first >= total_steps > 0:
            logging.warning(f"config.data.{part['name']} starts at step {first} of {total_steps}: it is never seen.")
    every = {n: config.steps(cfg, n, default=total_steps, least=1, **durations) for n in ("log", "evaluate", "save")}

    # --------------------------------------------------------------------------------- model, optimizer and evaluators
    training = make_step(cfg, tokenizer, mesh, durations)
    if cfg.get("targets") or hasattr(training.model, "kinds"):  # it learns what labels say
        importlib.import_module("prismer_jax.training.targets").check_labels(mixture, cfg, training.model)
    readers = training.model, assembly.make_loss(cfg.loss).func
    apart = all(getattr(reader, "segments", True) for reader in readers)  # they tell the texts of a row apart
    if any("pack" in part or ("pack(" in part["pp"] and not apart) for part in cfg.data.values()):
        importlib.import_module("prismer_jax.datasets.packing").check(cfg.data, *readers)
    assembly.check_tasks(cfg.tasks, tokenizer)
    evals = assembly.make_evaluators(cfg.evals, training.model, tokenizer, mesh, quiet=True)
    sources = {part["name"]: part["source"] for part in mixture} | {f"evals.{n}": e.source for n, e in evals.items()}
    data_seen.check(workdir, sources, allow_changed_data)
    assembly.check_metric(cfg.get("checkpoint", {}).get("best_metric"), evals)

    # ------------------------------------------------------------------------------------------- state and checkpoints
    checkpoints = config.call(
        checkpoint.Checkpointer,
        cfg.get("checkpoint", config.Section({})),
        "config.checkpoint",
        directory=workdir.path / "checkpoints",
        **assembly.description(cfg, tokenizer),
    )
    first_step = checkpoints.latest_step() or 0
    export = workdir.path / "export"
    if not first_step and export.exists():  # which all programs would take for this run's
        raise UserError(f"{export} is of a run whose checkpoints are gone. Delete it, or use another --workdir.")
    load_initial = assembly.make_initial(cfg, training.model)
    watch = Watch(cfg, workdir, evals, training.optimizer.schedules, checkpoints, total_steps, every["log"], started)

    # ------------------------------------------------------------------------------------------------ batches and step
    if any("features" in part for part in cfg.data.values()):
        run = checkpoints.directory if first_step else None
        mixture = importlib.import_module("prismer_jax.training.features").cached(mixture, cfg, training, run)
    loading = dict(
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        first_step=first_step,
        num_workers=cfg.get("num_workers", 0),
        rows=sharding.rows_of(sharding.batch_sharding(mesh), cfg.batch_size),
        max_bad_fraction=cfg.get("max_bad_fraction", 0.01),
    )
    report_options, profile = assembly.report_and_profile(cfg)
    config.assert_read(cfg)  # before there are threads
    batches = input.to_device(input.train_batches(mixture, **loading), sharding.batch_sharding(mesh))
    first_batch = next(batches) if first_step < total_steps else None  # None: all steps are done

    def make_state() -> dict[str, Any]:
        with jax.set_mesh(mesh):  # every thread has its own
            if first_step:
                return checkpoints.restore(training.state)
            state = training.init(cfg.seed)
            return state | load_initial(state)

    with ThreadPoolExecutor(1) as pool:  # the state is made while the step is traced and compiled
        making = pool.submit(make_state)
        update = training.update
        if first_batch is not None:
            update = runtime.by_shape(update, training.compile(first_batch), first_batch)
        state = making.result()
    sharding.barrier("compiled")
    with contextlib.closing(batches), runtime.profiled(workdir.files / "profile", **profile) as before_step:
        state = loop(update, state, itertools.chain([first_batch], batches), watch, checkpoints, every, before_step)

    # ---------------------------------------------------------------------------------------------- what is left behind
    variables = {k: v for k, v in state.items() if k not in NO_VARIABLES}
    checkpoint.export(export, variables, **assembly.description(cfg, tokenizer, step=total_steps))
    if jax.process_index() == 0:
        results.write(workdir.files, evals, watch.scores, cfg, **report_options)
    return watch.scores


def loop(
    update: Callable[..., Any],
    state: dict[str, Any],
    batches: Iterator[Any],
    watch: Watch,
    checkpoints: checkpoint.Checkpointer,
    every: dict[str, int],
    before_step: Callable[[int, Any], None],
) -> dict[str, Any]:
    """Trains from the state's step to the last one: updates, reports, evaluates and saves. Returns the last state.

    Args:
      update: (state, batch) -> (state, measured), compiled; it donates the state.
      batches: of the steps, on the devices.
      every: steps between two of 'log', 'evaluate' and 'save'.
      before_step: (step of this start, state), see `runtime.profiled`.
    """
    total_steps = watch.total_steps
    with Interrupts(jax.process_count()) as interrupts, watch, checkpoints:
        if 0 < watch.first_step < total_steps and watch.first_step % every["evaluate"] == 0 and watch.owes_scores:
            watch.evaluate(watch.first_step, state)
            checkpoints.save(watch.first_step, state, watch.scores)
        for step, batch in zip(range(watch.first_step + 1, total_steps + 1), watch.pace.timed(batches), strict=False):
            before_step(step - watch.first_step, state)
            with jax.transfer_guard("disallow"):
                state, measured = update(state, batch)
            watch.note(step, measured)
            if interrupts.after(step):
                watch.keep()
                saves = interrupts.preempted or jax.process_count() == 1  # all processes have to
                if saves:
                    checkpoints.save(step, state)
                    checkpoints.wait()  # an error here is one to report
                said = f"step {step} is saved" if saves else "nothing is saved since the last checkpoint"
                raise (Preempted if interrupts.preempted else Stopped)(f"{said}; the same command goes on from it.")
            evaluates = step % every["evaluate"] == 0 and step < total_steps
            if evaluates:
                watch.evaluate(step, state)
            if step % every["save"] == 0 or step == total_steps:
                watch.keep()
                checkpoints.save(step, state, watch.scores if evaluates else None)
        watch.evaluate(total_steps, state)
        checkpoints.save(total_steps, state, watch.scores)
    return state


class Watch:
    """What a run says of itself: losses, rates and evaluations, on the terminal and in the workdir's files.

    Attributes:
      scores: of the last evaluation, {'evaluator/metric': value}.
      owes_scores: whether no start evaluated the step that this one goes on from, as where it was preempted.
      pace: of the steps.
    """

    def __init__(
        self,
        cfg: config.Section,
        workdir: config.Workdir,
        evals: dict[str, evaluators.Evaluator],
        schedules: Mapping[str, Callable[[int], Any]],
        checkpoints: checkpoint.Checkpointer,
        total_steps: int,
        log_steps: int,
        started: float,
    ) -> None:
        main_process = jax.process_index() == 0
        self.workdir, self.total_steps = workdir, total_steps
        self.first_step = first_step = checkpoints.latest_step() or 0
        self.scores: dict[str, float] = {}
        self._evals, self._schedules, self._checkpoints, self._started = evals, schedules, checkpoints, started
        self._batch_size, self._log_steps = cfg.batch_size, log_steps
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []  # fetched late, so that devices never wait
        logged = [name for line in metrics.read(workdir.files) if line["step"] == first_step for name in line]
        self.owes_scores = bool(evals) and not any(name.partition("/")[0] in evals for name in logged)
        self.pace = Pace(workdir.files, first_step, writes=main_process)
        self._progress = metrics.Progress(total_steps, first_step, enabled=main_process)
        told = dict(wandb=config.plain(cfg.get("wandb")), config=json.loads(config.to_json(cfg)))  # which reads no key
        self._writer = metrics.Writer(workdir.files, first_step=first_step, enabled=main_process, **told)

    def __enter__(self) -> Watch:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
        self._writer.__exit__(*error)

    def note(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Takes what a step measured, which may still be computed; waits for it where it is to be shown."""
        self._pending.append((step, measured))
        if step == self.first_step + 1:
            self.pace.restart(step)  # the first step compiled: it is no measure
            self.settle()
            self.pace.restart(step)
            self._progress.say(f"first step after {time.monotonic() - self._started:.1f} s")
        elif step % self._log_steps == 0:
            self.settle()

    def settle(self) -> None:
        """Waits for the pending steps and writes their values, but for means over no row of a batch, which are NaN.

        Raises:
          UserError: a loss or gradient is not finite, or the first step learns nothing: the run stops unsaved.
        """
        for step, measured in jax.device_get(self._pending):
            loss, norm = measured["train/loss"], measured["train/grad_norm"]
            remedy = "Lower config.optim.lr, or set config.optim.clip_norm."
            nothing = not measured.pop("weight") or loss == 0 == norm
            if nothing:
                remedy = "No token of this batch is to be learnt: pp of config.data must write targets behind prompts."
            if not math.isfinite(loss + norm) or (nothing and step == 1):
                last = f"the last checkpoint is of step {self._checkpoints.latest_step()}"
                raise UserError(f"The loss is {loss} at step {step}; its gradient's norm is {norm}; {last}. {remedy}")
            self._progress.step(images=self._batch_size, tokens=int(measured.pop("tokens")))
            if step % self._log_steps == 0 or step == self.total_steps:
                rates = {**self._progress.show(loss=loss), **self.pace.measure(step)}
                measured |= {f"train/{name}": float(schedule(step - 1)) for name, schedule in self._schedules.items()}
                measured |= {f"time/{name}": rate for name, rate in rates.items()}
                self._writer.write(step, {k: x for k, x in measured.items() if x == x})
        self._pending.clear()

    def keep(self) -> None:
        """Settles, and has what is written lie where checkpoints do: a run may go on from one on another machine."""
        self.settle()
        self.workdir.push()

    def evaluate(self, step: int, state: dict[str, Any]) -> None:
        """Runs all evaluators and writes their scores."""
        self.settle()
        with self._progress.paused("evaluating"):
            variables = {k: v for k, v in state.items() if k not in NO_VARIABLES}
            self.scores = evaluators.run(self._evals, variables)
        self._writer.write(step, self.scores)
        self.pace.restart(step)


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.train", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg; --config.key=value overrides a key")
    parser.add_argument("--workdir", type=storage.folder, help="checkpoints, metrics and report go here")
    parser.add_argument("--estimate", action="store_true", help="only say how much memory a step takes")
    parser.add_argument("--plan", metavar="v5e:4x4,...", help="only say what a step takes on TPUs: docs/scaling.md")
    parser.add_argument("--allow-changed-data", action="store_true", help="go on although the data changed since")
    args, overrides = parser.parse(argv)
    runtime.log_warnings()
    if args.plan:
        return importlib.import_module("prismer_jax.planning.plan").main(args.config, overrides, args.plan)
    if args.estimate:
        return importlib.import_module("prismer_jax.planning.memory").main(args.config, overrides)
    if args.workdir is None:
        raise UserError("The following arguments are required: --workdir. Try --help.")
    cfg = config.load(args.config, overrides)
    results.show(train(cfg, args.workdir, allow_changed_data=args.allow_changed_data))
    print(f"Report: {args.workdir / 'report.html'}   model: {args.workdir / 'export'}")


if __name__ == "__main__":
    run_main(main)
