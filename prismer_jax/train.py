"""The training loop: python -m prismer_jax.train --config FILE.py[:arg] --workdir DIR [--config.key=value ...]

One script for every model, data set and task: the config names them, this file wires them together, top to bottom.
Started again with the same workdir it goes on from the last checkpoint, and its losses are bitwise those of a run that
was never interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pathlib
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prismer_jax import (
    assembly,
    checkpoint,
    config,
    evaluators,
    input,
    metrics,
    models,
    optim,
    pp,
    results,
    runtime,
    sharding,
)
from prismer_jax.errors import UserError, run_main

STARTED = time.monotonic()
PRNG = "rbg"  # hardware generators where there are any, and compiled in a fraction of Threefry's time
# Keys that may differ between two starts in one workdir: what is watched and kept, not what is learnt.
MAY_CHANGE = ("(log|evaluate|save)_.*", r"(mesh|evals|checkpoint|report|wandb|profile)\b.*", "num_workers")


def train(cfg: config.Section, workdir: pathlib.Path, estimate: bool = False) -> dict[str, float]:
    """Trains as the config says, in `workdir`; returns the last value of every evaluation metric.

    With `estimate` it compiles the training step and says how much memory that takes, but trains nothing.

    Raises:
      UserError: the config, the data or the workdir cannot be used, or the loss is no longer finite.
    """
    runtime.use_compilation_cache()
    sharding.initialize_distributed(cfg.get("distributed"))
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    with jax.set_mesh(mesh):
        return train_on(mesh, cfg, workdir, estimate)


def train_on(mesh: jax.sharding.Mesh, cfg: config.Section, workdir: pathlib.Path, estimate: bool) -> dict[str, float]:
    """`train` on a mesh, which is set."""
    # -------------------------------------------------------------------------------------------------------- workdir
    main_process = jax.process_index() == 0
    batch_size, accumulate = cfg.batch_size, cfg.get("accumulate", 1)
    sharding.check_batch(batch_size, mesh, accumulate)
    config.save_resolved(workdir, cfg, MAY_CHANGE)

    # ------------------------------------------------------------------------------------------------------------ data
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    mixture = assembly.load_mixture(cfg.data, tokenizer)
    num_examples = sum(part["size"] for part in mixture)
    durations: dict[str, Any] = dict(batch_size=batch_size, num_examples=num_examples)
    durations["total_steps"] = total_steps = config.steps(cfg, "total", **durations)
    log_steps, evaluate_steps, save_steps = (
        max(1, config.steps(cfg, name, default=total_steps, **durations)) for name in ("log", "evaluate", "save")
    )

    # --------------------------------------------------------------------------------- model, optimizer and evaluators
    model = assembly.make_model(cfg, tokenizer)
    loss_fn = assembly.make_loss(cfg.loss)
    evals = assembly.make_evaluators(cfg.evals, model, tokenizer, mesh, quiet=True)
    kind = cfg.model.get("name", "prismer")
    frozen, resize = models.frozen(kind, config.plain(cfg.get("freeze", "none"))), models.RESIZE.get(kind)
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

    # ---------------------------------------------------------------------------------------------------- initial state
    def init(rng: jax.Array) -> dict[str, Any]:
        variables = model.init_variables(rng)
        trainable, _ = optim.split(variables["params"], frozen)
        return {**variables, "opt": optimizer.tx.init(trainable), "step": jnp.zeros((), jnp.int32)}

    like = jax.eval_shape(init, jax.random.key(0))
    places = sharding.param_shardings(like["params"], config.plain(cfg.get("sharding", ())), mesh)
    places = sharding.shardings_like(like, like["params"], places, mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, places)
    checkpoints = config.call(
        checkpoint.Checkpointer,
        cfg.get("checkpoint", config.Section({})),
        "config.checkpoint",
        directory=workdir / "checkpoints",
        **assembly.description(cfg, tokenizer),
    )
    first_step = checkpoints.latest_step() or 0
    start_from, fresh = cfg.get("init"), config.plain(cfg.get("init_fresh", ()))
    report_options = config.plain(cfg.get("report", {}))
    profile = config.plain(cfg.get("profile", {}))
    writer = metrics.Writer(
        workdir,
        first_step=first_step,
        wandb=config.plain(cfg.get("wandb")),
        config=config.plain(cfg),
        enabled=main_process,
    )
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
    config.assert_read(cfg)

    update = make_update(model, loss_fn, optimizer.tx, tokenizer.pad, frozen, accumulate, cfg.seed)
    update = jax.jit(update, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
    batches = input.to_device(host_batches, sharding.batch_sharding(mesh), rows_read=getattr(model, "rows_read", None))
    first_batches = [next(batches)] if first_step < total_steps else []

    def compile_update() -> Any:
        with jax.set_mesh(mesh):  # every thread has its own
            return update.lower(like, *first_batches).compile() if first_batches else update

    if estimate:
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
            if start_from is not None:
                state |= checkpoint.load_into(state, start_from, fresh, resize)
        update = compiling.result()

    # ------------------------------------------------------------------------------------------------------------- loop
    progress = metrics.Progress(total_steps, first_step, enabled=main_process)
    scores: dict[str, float] = {}  # of the last evaluation
    pending: list[
        tuple[int, dict[str, jax.Array]]
    ] = []  # what was measured is fetched late, so that devices never wait

    def settle() -> None:
        """Waits for the pending steps; a loss that is not finite stops the run before it is saved."""
        for step, measured in pending:
            measured = jax.device_get(measured)
            if not math.isfinite(measured["train/loss"]):
                raise UserError(
                    f"The loss is {measured['train/loss']} at step {step}; the last checkpoint is of step "
                    f"{checkpoints.latest_step()}. Lower config.optim.lr, or set config.optim.clip_norm."
                )
            progress.step(images=batch_size, tokens=int(measured.pop("tokens")))
            if step % log_steps == 0 or step == total_steps:
                rates = progress.show(loss=measured["train/loss"])
                rates = {f"time/{name}": rate for name, rate in rates.items()}
                lr = {f"train/{name}": float(schedule(step - 1)) for name, schedule in optimizer.schedules.items()}
                writer.write(step, {**measured, **lr, **rates})
        pending.clear()

    def evaluate_now(step: int) -> None:
        settle()
        with progress.paused("evaluating"):
            scores.update(evaluators.run(evals, {k: state[k] for k in ("params", "batch_stats", "tables")}))
        writer.write(step, scores)

    for number in (signal.SIGINT, signal.SIGTERM):  # a preemption ends like Ctrl-C, with all files closed
        signal.signal(number, interrupt)
    with writer, checkpoints, contextlib.closing(batches), progress:
        steps = range(first_step + 1, total_steps + 1)
        for step, batch in zip(steps, itertools.chain(first_batches, batches), strict=False):
            runtime.profile_step(step - first_step, workdir / "profile", **profile)
            with jax.transfer_guard("disallow"):
                state, measured = update(state, batch)
            pending.append((step, measured))
            if step == first_step + 1:
                settle()
                progress.say(f"first step after {time.monotonic() - STARTED:.1f} s")
            elif step % log_steps == 0:
                settle()
            if step % evaluate_steps == 0 and step < total_steps:
                evaluate_now(step)
            if step % save_steps == 0 or step == total_steps:
                settle()
                checkpoints.save(step, state, scores if step % evaluate_steps == 0 and step < total_steps else None)
        evaluate_now(total_steps)
        checkpoints.save(total_steps, state, scores)

        # ------------------------------------------------------------------------------------------ what is left behind
        variables = {k: state[k] for k in ("params", "batch_stats", "tables")}
        checkpoint.export(workdir / "export", variables, **assembly.description(cfg, tokenizer, step=total_steps))
        if main_process:
            results.write(workdir, evals, scores, cfg, **report_options)
    return scores


def interrupt(*_: Any) -> None:
    """Ends the run. Python's own handler would let asyncio, with which Orbax saves, take Ctrl-C for itself."""
    raise KeyboardInterrupt


def make_update(
    model: Any,
    loss_fn: Callable[..., jax.Array],
    tx: optax.GradientTransformation,
    pad: int,
    frozen: Sequence[str] = (),
    accumulate: int = 1,
    seed: int = 0,
) -> Callable[[dict[str, Any], Any], tuple[dict[str, Any], dict[str, jax.Array]]]:
    """Returns the training step (state, batch) -> (state, measured), to be jitted.

    Args:
      model, loss_fn, tx: what is trained, towards what, and how.
      pad: id of padding, which is no token that is counted.
      frozen: regexes of the parameters that are not differentiated.
      accumulate: parts of the batch whose gradients are computed one after the other.
      seed: of dropout and of what else a model draws; the draws of a step are a function of both.
    """

    def update(state: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        trainable, fixed = optim.split(state["params"], frozen)
        rng = jax.random.fold_in(jax.random.key(seed, impl=PRNG), state["step"])

        def objective(trainable: Any, stats: Any, batch: Any, rng: jax.Array) -> Any:
            variables = {"params": optim.merge(trainable, fixed), "batch_stats": stats, "tables": state["tables"]}
            rngs = dict(zip(("dropout", "instance"), jax.random.split(rng), strict=True))
            logits, new = model.apply(variables, batch, train=True, rngs=rngs, mutable=["batch_stats"])
            costs = loss_fn(logits, batch["text"], batch["mask_loss"])
            return costs.mean(), (new.get("batch_stats", stats), {})

        compute = optim.accumulate_gradients(objective, accumulate)
        loss, gradient, stats, _ = compute(trainable, state["batch_stats"], batch, rng)
        updates, opt = tx.update(gradient, state["opt"], trainable)
        params = optim.merge(optax.apply_updates(trainable, updates), fixed)
        new = {**state, "params": params, "batch_stats": stats, "opt": opt, "step": state["step"] + 1}
        tokens = (batch["text"] != pad).sum()
        return new, {"train/loss": loss, "train/grad_norm": optax.global_norm(gradient), "tokens": tokens}

    return update


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.train", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg; --config.key=value overrides a key")
    parser.add_argument("--workdir", type=pathlib.Path, help="checkpoints, metrics and report go here")
    parser.add_argument("--estimate", action="store_true", help="only say how much memory a step takes")
    args, overrides = parser.parse(argv)
    runtime.log_warnings()
    if args.estimate:
        with tempfile.TemporaryDirectory() as scratch:
            train(config.load(args.config, overrides), pathlib.Path(scratch), estimate=True)
        return
    if args.workdir is None:
        raise UserError("The following arguments are required: --workdir. Try --help.")
    results.show(train(config.load(args.config, overrides), args.workdir))
    print(f"Report: {args.workdir / 'report.html'}   model: {args.workdir / 'export'}")


if __name__ == "__main__":
    run_main(main)
