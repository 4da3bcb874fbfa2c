"""The training step: what follows from a config and a mesh alone, made from shapes, before there is any array."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prismer_jax import assembly, config, losses, models, optim, sharding
from prismer_jax.batch import Batch
from prismer_jax.errors import UserError, choose

NO_VARIABLES = ("opt", "step")  # of the state; all else are the model's
KEPT_AS = ("float32", "bfloat16", "float16")  # types of what is not trained
# A CPU multiplies no bfloat16: XLA would make float32 of whole stacks of kernels ahead of the loop over their layers.
ON_CPU = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
PRNG = "rbg"  # hardware generators where there are any, and compiled in a fraction of Threefry's time
# Of a step's draws: with rbg each device draws for all rows, as XLA does not split that, with Threefry for its own.
PRNGS = (PRNG, "threefry2x32")


class Step(NamedTuple):
    """A training step on a mesh.

    Attributes:
      model, optimizer: what is trained, and how.
      trainable: {name: shape} of the parameters that are trained.
      state: {'params', ..., 'opt', 'step'}, shapes that say where each array lies.
      init: seed -> a fresh state on the mesh.
      update: (state, batch) -> (state, measured); it donates the state. See `make_update`.
      mesh: the devices, which need not be of this machine unless something is to run.
    """

    model: Any
    optimizer: optim.Optimizer
    trainable: Mapping[str, jax.ShapeDtypeStruct]
    state: dict[str, Any]
    init: Callable[[int], dict[str, Any]]
    update: Any
    mesh: jax.sharding.Mesh

    def compile(self, batch: Any) -> Any:
        """Returns `update` compiled for a batch of the whole mesh: arrays, or shapes that say where each lies."""
        with jax.set_mesh(self.mesh):
            lowered = self.update.lower(self.state, batch)
        halves = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(self.state["params"]))
        return lowered.compile(ON_CPU if halves and self.mesh.devices.flat[0].platform == "cpu" else None)


def make_step(cfg: config.Section, tokenizer: Any, mesh: jax.sharding.Mesh, durations: Mapping[str, int]) -> Step:
    """Returns the training step of a config; `durations`, with total_steps, are those that `config.steps` takes.

    Raises:
      UserError: the sections of model, loss, optimiser or sharding cannot be used.
    """
    model, loss_fn = assembly.make_model(cfg, tokenizer), assembly.make_loss(cfg.loss)
    frozen = models.frozen(models.name_of(cfg.model), config.plain(cfg.get("freeze", "none")), model)
    kept_as = jnp.dtype(choose("frozen_dtype", cfg.get("frozen_dtype") or "float32", KEPT_AS))
    init_variables = model.init_variables
    if cfg.get("targets"):
        make = importlib.import_module("prismer_jax.training.targets").make
        targets = config.call(make, cfg.targets, "config.targets", model=model)
        init_variables, loss_fn, frozen = targets.init_variables, targets.taught(loss_fn), targets.trained(frozen)
    init_variables, key = jax.jit(init_variables), jax.eval_shape(lambda: jax.random.key(0, impl=PRNG))
    key = key.update(sharding=sharding.replicated(mesh))  # as the real one's, or the model would be traced twice
    params = jax.eval_shape(init_variables, key)["params"]
    trained, fixed = optim.split(params, frozen)
    optimizer = config.call(
        optim.make,
        cfg.optim,
        "config.optim",
        skip=config.duration_keys("warmup"),
        params=trained,
        frozen=tuple(fixed),
        total_steps=durations["total_steps"],
        warmup_steps=config.steps(cfg.optim, "warmup", default=0, **durations),
    )

    def init(rng: jax.Array) -> dict[str, Any]:
        variables = dict(init_variables(rng))
        trainable, fixed = optim.split(variables["params"], frozen)
        fixed = {name: x.astype(kept_as) if x.dtype == jnp.float32 else x for name, x in fixed.items()}
        variables["params"] = optim.merge(trainable, fixed)
        return {**variables, "opt": optimizer.tx.init(trainable), "step": jnp.zeros((), jnp.int32)}

    spec, tensor = assembly.sharding_of(cfg, model)
    state = sharding.placed(jax.eval_shape(init, key), spec, mesh, tensor)
    gradients = sharding.gradients(params, trained, spec, mesh, tensor)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    init = jax.jit(init, out_shardings=shardings)
    settings = cfg.get("accumulate", 1), cfg.seed, gradients, choose("prng", cfg.get("prng") or PRNG, PRNGS)
    update = make_update(model, loss_fn, optimizer.tx, frozen, *settings)
    return Step(
        model=model,
        optimizer=optimizer,
        trainable=optim.split(state["params"], frozen)[0],
        state=state,
        init=lambda seed: init(jax.random.key(seed, impl=PRNG)),
        update=jax.jit(update, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))),
        mesh=mesh,
    )


def make_update(
    model: Any,
    loss_fn: losses.Loss,
    tx: optax.GradientTransformation,
    frozen: Sequence[str] = (),
    accumulate: int = 1,
    seed: int = 0,
    gradient_shardings: Mapping[str, Any] | None = None,
    prng: str = PRNG,
) -> Callable[[dict[str, Any], Any], tuple[dict[str, Any], dict[str, jax.Array]]]:
    """Returns the training step (state, batch) -> (state, measured), to be jitted.

    Args:
      model, loss_fn, tx: what is trained, towards what (see `losses`), and how.
      frozen: regexes of the parameters that are not differentiated.
      accumulate: parts of the batch whose gradients are computed one after the other.
      seed, prng: of dropout and of what else a model draws, with a generator of PRNGS: functions of seed and step.
      gradient_shardings: {name: sharding} of the gradients that are split; see `sharding.gradients`.
    """

    def update(state: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        trainable, fixed = optim.split(state["params"], frozen)
        others = {k: v for k, v in state.items() if k not in ("params", *NO_VARIABLES)}
        rng = jax.random.fold_in(jax.random.key(seed, impl=prng), state["step"])

        def objective(trainable: Any, others: Any, batch: Any, rng: jax.Array) -> Any:
            forward = Forward(model, {**others, "params": optim.merge(trainable, fixed)}, rng)
            sums = _sums(loss_fn(forward, Batch(batch)))
            return sums["loss"][0], ({k: forward.variables[k] for k in others}, sums)

        def compute(*seen: Any) -> tuple[Any, Any, Any]:
            gradient, (others, sums) = jax.grad(objective, has_aux=True)(*seen)
            if gradient_shardings:
                gradient = jax.lax.with_sharding_constraint(gradient, gradient_shardings)
            return gradient, others, sums

        if accumulate > 1:
            compute = importlib.import_module("prismer_jax.training.accumulate").in_parts(compute, accumulate)
        gradient, others, sums = compute(trainable, others, batch, rng)
        gradient = jax.tree.map(lambda g: (g / sums["loss"][1]).astype(g.dtype), gradient)
        updates, opt = tx.update(gradient, state["opt"], trainable)
        params = optim.merge(optax.apply_updates(trainable, updates), fixed)
        new = {**others, "params": params, "opt": opt, "step": state["step"] + 1}
        means = {f"train/{name}": cost / weight for name, (cost, weight) in sums.items()}
        real = batch["mask_input"].sum() if "mask_input" in batch else jnp.zeros((), jnp.int32)
        return new, {**means, "train/grad_norm": optim.global_norm(gradient), "tokens": real, "weight": sums["loss"][1]}

    return update


def _sums(costs: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns the sums of a loss's costs and weights, each an array of the examples; raises UserError for others."""
    try:
        sums = {name: (cost.sum(), weight.sum()) for name, (cost, weight) in costs.items()}
        return {"loss": sums["loss"], **sums}
    except (AttributeError, KeyError, TypeError, ValueError):
        form = "a dict of arrays, {'loss': (costs [B], weights [B]), ...}"
        raise UserError(f"config.loss: the function must return {form}.") from None


class Forward:
    """A model in training, as a loss calls it: running statistics go from pass to pass, and each pass draws anew."""

    def __init__(self, model: Any, variables: dict[str, Any], rng: jax.Array) -> None:
        self.model, self.variables, self.rng, self.passes = model, variables, rng, 0
        self.patches: Any = {}  # what the vision tower made of them in the last pass that saw photos

    def __call__(self, *args: Any, **settings: Any) -> Any:
        rng = jax.random.fold_in(self.rng, self.passes) if self.passes else self.rng
        self.passes += 1
        rngs = dict(zip(self.model.rngs, jax.random.split(rng, len(self.model.rngs)), strict=True))
        mutable = ["patches", *(name for name in self.variables if name != "params")]
        out, new = losses.apply(self.model, self.variables, *args, train=True, rngs=rngs, mutable=mutable, **settings)
        self.patches = new.pop("patches", self.patches)
        self.variables |= new
        return out
