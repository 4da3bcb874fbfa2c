"""The training loop: python -m prismer_jax.train --config FILE.py[:arg] --workdir DIR [--config.key=value ...]

One script for every model, data set and task: the config names them, this file wires them together, top to bottom.
Started again with the same workdir it goes on from the last checkpoint, and its losses are bitwise those of a run that
was never interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prismer_jax import (
    assembly,
    checkpoint,
    config,
    evaluators,
    input,
    losses,
    metrics,
    models,
    optim,
    pp,
    runtime,
    sharding,
)
from prismer_jax.batch import Batch
from prismer_jax.datasets import data_seen
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage
from prismer_jax.report import results

NO_VARIABLES = ("opt", "step")  # of the state; all else are the model's
PRNG = "rbg"  # hardware generators where there are any, and compiled in a fraction of Threefry's time
# Keys that may differ between two starts in one workdir: what is watched and kept, not what is learnt.
MAY_CHANGE = ("(log|evaluate|save)_.*", r"(mesh|evals|checkpoint|report|wandb|profile)\b.*", "num_workers")


def train(
    cfg: config.Section | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    estimate: bool = False,
    allow_changed_data: bool = False,
) -> dict[str, float]:
    """Trains as the config says, in `workdir`; returns the last value of every evaluation metric.

    Args:
      cfg: what `config.load` returns, a ConfigDict or a dict.
      workdir: a folder for checkpoints, metrics and the report; made if need be.
      estimate: only compile the training step and say how much memory that takes.
      allow_changed_data: go on with a run although its data are no longer those that it began with.

    Raises:
      UserError: the config, the data or the workdir cannot be used, or the loss is no longer finite.
      KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and, by a single process, saved first.
    """
    started, cfg = time.monotonic(), config.strict(cfg)
    runtime.use_compilation_cache()
    sharding.initialize_distributed(cfg.get("distributed"))
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    with jax.set_mesh(mesh):
        return train_on(mesh, cfg, storage.on_disk(workdir), Start(estimate, allow_changed_data, started))


class Start(NamedTuple):
    """How a run was asked for: see `train`; and when, by time.monotonic()."""

    estimate: bool
    allow_changed_data: bool
    time: float


def train_on(mesh: jax.sharding.Mesh, cfg: config.Section, workdir: pathlib.Path, start: Start) -> dict[str, float]:
    """`train` on a mesh, which is set: from the config to all that `loop` needs, top to bottom."""
    # -------------------------------------------------------------------------------------------------------- workdir
    batch_size, accumulate = cfg.batch_size, cfg.get("accumulate", 1)
    sharding.check_batch(batch_size, mesh, accumulate)
    config.save_resolved(workdir, cfg, MAY_CHANGE)

    # ------------------------------------------------------------------------------------------------------------ data
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    mixture = assembly.load_mixture(cfg.data, tokenizer)
    data_seen.check(workdir, {part["name"]: part["source"] for part in mixture}, start.allow_changed_data)
    durations: dict[str, Any] = dict(batch_size=batch_size, num_examples=sum(part["size"] for part in mixture))
    durations["total_steps"] = total_steps = config.steps(cfg, "total", **durations)
    every = {
        name: max(1, config.steps(cfg, name, default=total_steps, **durations)) for name in ("log", "evaluate", "save")
    }

    # --------------------------------------------------------------------------------- model, optimizer and evaluators
    model = assembly.make_model(cfg, tokenizer)
    loss_fn = assembly.make_loss(cfg.loss)
    evals = assembly.make_evaluators(cfg.evals, model, tokenizer, mesh, quiet=True)
    assembly.check_metric(cfg.get("checkpoint", {}).get("best_metric"), evals)
    frozen = models.frozen(cfg.model.get("name", models.DEFAULT), config.plain(cfg.get("freeze", "none")))
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    optimizer = config.call(
        optim.make,
        cfg.optim,
        "config.optim",
        skip=config.duration_keys("warmup"),
        params=optim.split(shapes["params"], frozen)[0],
        total_steps=total_steps,
        warmup_steps=config.steps(cfg.optim, "warmup", default=0, **durations),
    )

    # ------------------------------------------------------------------------------------------- state and checkpoints
    def init(rng: jax.Array) -> dict[str, Any]:
        variables = model.init_variables(rng)
        trainable, _ = optim.split(variables["params"], frozen)
        return {**variables, "opt": optimizer.tx.init(trainable), "step": jnp.zeros((), jnp.int32)}

    like = sharding.placed(jax.eval_shape(init, jax.random.key(0)), config.plain(cfg.get("sharding", ())), mesh)
    places = jax.tree.map(lambda x: x.sharding, like)
    checkpoints = config.call(
        checkpoint.Checkpointer,
        cfg.get("checkpoint", config.Section({})),
        "config.checkpoint",
        directory=workdir / "checkpoints",
        **assembly.description(cfg, tokenizer),
    )
    first_step = checkpoints.latest_step() or 0
    load_initial = assembly.make_initial(cfg)
    watch = Watch(cfg, workdir, evals, optimizer.schedules, checkpoints, total_steps, every["log"], start.time)

    # ------------------------------------------------------------------------------------------------ batches and step
    host_batches = input.train_batches(
        mixture,
        batch_size=batch_size,
        seed=cfg.seed,
        first_step=first_step,
        num_workers=cfg.get("num_workers", 0),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_bad_fraction=cfg.get("max_bad_fraction", 0.01),
    )
    report_options, profile = assembly.settings_of_later(cfg)
    config.assert_read(cfg)
    update = make_update(model, loss_fn, optimizer.tx, frozen, accumulate, cfg.seed)
    update = jax.jit(update, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
    batches = input.to_device(host_batches, sharding.batch_sharding(mesh))
    first_batches = [next(batches)] if first_step < total_steps else []

    def compile_update() -> Any:
        with jax.set_mesh(mesh):  # every thread has its own
            return update.lower(like, *first_batches).compile() if first_batches else update

    if start.estimate:
        with contextlib.closing(batches):
            lines = runtime.memory(like, optim.split(like["params"], frozen)[0], first_batches, compile_update())
        print(*lines, sep="\n")
        return {}
    with ThreadPoolExecutor(1) as pool:  # the step is compiled while the state is made
        compiling = pool.submit(compile_update)
        if first_step:
            state = checkpoints.restore(like)
        else:
            state = jax.jit(init, out_shardings=places)(jax.random.key(cfg.seed, impl=PRNG))
            state |= load_initial(state)
        update = compiling.result()
    with contextlib.closing(batches):
        stream = itertools.chain(first_batches, batches)
        profile_step = functools.partial(runtime.profile_step, **profile)
        state = loop(update, state, stream, watch, checkpoints, every, profile_step)

    # ---------------------------------------------------------------------------------------------- what is left behind
    variables = {k: v for k, v in state.items() if k not in NO_VARIABLES}
    checkpoint.export(workdir / "export", variables, **assembly.description(cfg, tokenizer, step=total_steps))
    if jax.process_index() == 0:
        results.write(workdir, evals, watch.scores, cfg, **report_options)
    return watch.scores


def loop(
    update: Callable[..., Any],
    state: dict[str, Any],
    batches: Iterator[Any],
    watch: Watch,
    checkpoints: checkpoint.Checkpointer,
    every: dict[str, int],
    profile_step: Callable[..., None],
) -> dict[str, Any]:
    """Trains from the state's step to the last one: updates, reports, evaluates and saves. Returns the last state.

    Args:
      update: (state, batch) -> (state, measured), compiled; it donates the state.
      batches: of the steps, on the devices.
      every: steps between two of 'log', 'evaluate' and 'save'.
      profile_step: (step of this start, folder), see `runtime.profile_step`.
    """
    total_steps = watch.total_steps
    with runtime.Interrupts() as interrupts, watch, checkpoints:
        for step, batch in zip(range(watch.first_step + 1, total_steps + 1), batches, strict=False):
            profile_step(step - watch.first_step, watch.workdir / "profile")
            with jax.transfer_guard("disallow"):
                state, measured = update(state, batch)
            watch.note(step, measured)
            if interrupts.asked:
                watch.settle()
                if jax.process_count() == 1:  # of several processes, all would have to save
                    checkpoints.save(step, state)
                raise KeyboardInterrupt
            evaluates = step % every["evaluate"] == 0 and step < total_steps
            if evaluates:
                watch.evaluate(step, state)
            if step % every["save"] == 0 or step == total_steps:
                watch.settle()
                checkpoints.save(step, state, watch.scores if evaluates else None)
        watch.evaluate(total_steps, state)
        checkpoints.save(total_steps, state, watch.scores)
    return state


class Watch:
    """What a run says of itself: losses, rates and evaluations, on the terminal and in the workdir's files.

    Attributes:
      scores: of the last evaluation, {'evaluator/metric': value}.
    """

    def __init__(
        self,
        cfg: config.Section,
        workdir: pathlib.Path,
        evals: dict[str, evaluators.Evaluator],
        schedules: Mapping[str, Callable[[int], Any]],
        checkpoints: checkpoint.Checkpointer,
        total_steps: int,
        log_steps: int,
        started: float,
    ) -> None:
        main_process, self._checkpoints = jax.process_index() == 0, checkpoints
        self.workdir, self.total_steps = workdir, total_steps
        self.first_step = first_step = checkpoints.latest_step() or 0
        self.scores: dict[str, float] = {}
        self._evals, self._schedules, self._started = evals, schedules, started
        self._batch_size, self._log_steps = cfg.batch_size, log_steps
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []  # fetched late, so that devices never wait
        self._progress = metrics.Progress(total_steps, first_step, enabled=main_process)
        self._writer = metrics.Writer(
            workdir,
            first_step=first_step,
            wandb=config.plain(cfg.get("wandb")),
            config=config.plain(cfg),
            enabled=main_process,
        )

    def __enter__(self) -> Watch:
        self._writer.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
        self._writer.__exit__(*error)

    def note(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Takes what a step measured, which may still be computed; waits for it where it is to be shown."""
        self._pending.append((step, measured))
        if step == self.first_step + 1:
            self.settle()
            self._progress.say(f"first step after {time.monotonic() - self._started:.1f} s")
        elif step % self._log_steps == 0:
            self.settle()

    def settle(self) -> None:
        """Waits for the pending steps and writes their values.

        Raises:
          UserError: a loss is not finite; the run stops before it is saved.
        """
        for step, measured in self._pending:
            measured = jax.device_get(measured)
            if not math.isfinite(measured["train/loss"]):
                raise UserError(
                    f"The loss is {measured['train/loss']} at step {step}; the last checkpoint is of step "
                    f"{self._checkpoints.latest_step()}. Lower config.optim.lr, or set config.optim.clip_norm."
                )
            self._progress.step(images=self._batch_size, tokens=int(measured.pop("tokens")))
            if step % self._log_steps == 0 or step == self.total_steps:
                rates = self._progress.show(loss=measured["train/loss"])
                rates = {f"time/{name}": rate for name, rate in rates.items()}
                lr = {f"train/{name}": float(schedule(step - 1)) for name, schedule in self._schedules.items()}
                self._writer.write(step, {**measured, **lr, **rates})
        self._pending.clear()

    def evaluate(self, step: int, state: dict[str, Any]) -> None:
        """Runs all evaluators and writes their scores."""
        self.settle()
        with self._progress.paused("evaluating"):
            variables = {k: v for k, v in state.items() if k not in NO_VARIABLES}
            self.scores.update(evaluators.run(self._evals, variables))
        self._writer.write(step, self.scores)


def make_update(
    model: Any,
    loss_fn: losses.Loss,
    tx: optax.GradientTransformation,
    frozen: Sequence[str] = (),
    accumulate: int = 1,
    seed: int = 0,
) -> Callable[[dict[str, Any], Any], tuple[dict[str, Any], dict[str, jax.Array]]]:
    """Returns the training step (state, batch) -> (state, measured), to be jitted.

    Args:
      model, loss_fn, tx: what is trained, towards what (see `losses`), and how.
      frozen: regexes of the parameters that are not differentiated.
      accumulate: parts of the batch whose gradients are computed one after the other.
      seed: of dropout and of what else a model draws; the draws of a step are a function of both.
    """

    def update(state: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        trainable, fixed = optim.split(state["params"], frozen)
        others = {k: v for k, v in state.items() if k not in ("params", *NO_VARIABLES)}
        rng = jax.random.fold_in(jax.random.key(seed, impl=PRNG), state["step"])

        def objective(trainable: Any, others: Any, batch: Any, rng: jax.Array) -> Any:
            forward = Forward(model, {**others, "params": optim.merge(trainable, fixed)}, rng)
            sums = {name: (c.sum(), w.sum()) for name, (c, w) in loss_fn(forward, Batch(batch)).items()}
            return sums["loss"][0], ({k: forward.variables[k] for k in others}, sums)

        compute = optim.accumulate_gradients(objective, accumulate)
        gradient, others, sums = compute(trainable, others, batch, rng)
        gradient = jax.tree.map(lambda g: (g / sums["loss"][1]).astype(g.dtype), gradient)
        updates, opt = tx.update(gradient, state["opt"], trainable)
        params = optim.merge(optax.apply_updates(trainable, updates), fixed)
        new = {**others, "params": params, "opt": opt, "step": state["step"] + 1}
        means = {f"train/{name}": cost / weight for name, (cost, weight) in sums.items()}
        tokens = batch["mask_input"].sum()
        return new, {**means, "train/grad_norm": optax.global_norm(gradient), "tokens": tokens}

    return update


class Forward:
    """A model in training, as a loss calls it: running statistics go from pass to pass, and each pass draws anew."""

    def __init__(self, model: Any, variables: dict[str, Any], rng: jax.Array) -> None:
        self.model, self.variables, self.rng, self.passes = model, variables, rng, 0

    def __call__(self, *args: Any, method: str | None = None) -> Any:
        rng = jax.random.fold_in(self.rng, self.passes) if self.passes else self.rng
        self.passes += 1
        rngs = dict(zip(self.model.rngs, jax.random.split(rng, len(self.model.rngs)), strict=True))
        mutable = [name for name in self.variables if name != "params"]
        out, new = self.model.apply(
            self.variables, *args, train=True, rngs=rngs, mutable=mutable, method=method or "__call__"
        )
        self.variables |= new
        return out


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.train", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg; --config.key=value overrides a key")
    parser.add_argument("--workdir", type=storage.on_disk, help="checkpoints, metrics and report go here")
    parser.add_argument("--estimate", action="store_true", help="only say how much memory a step takes")
    parser.add_argument("--allow-changed-data", action="store_true", help="go on although the data changed since")
    args, overrides = parser.parse(argv)
    runtime.log_warnings()
    if args.estimate:
        with tempfile.TemporaryDirectory() as scratch:
            train(config.load(args.config, overrides), pathlib.Path(scratch), estimate=True)
        return
    if args.workdir is None:
        raise UserError("The following arguments are required: --workdir. Try --help.")
    cfg = config.load(args.config, overrides)
    results.show(train(cfg, args.workdir, allow_changed_data=args.allow_changed_data))
    print(f"Report: {args.workdir / 'report.html'}   model: {args.workdir / 'export'}")


if __name__ == "__main__":
    run_main(main)
