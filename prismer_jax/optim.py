"""Optimisers: a schedule, groups by the names of parameters, freezing, gradients accumulated over parts of a batch.

Every optimiser here decays weights as torch.optim.AdamW does, decoupled from the gradient (Loshchilov and Hutter, arXiv
1711.05101): p -= lr * (direction + weight_decay * p). As in the reference, biases and norms are decayed too unless
wd_mults says otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from prismer_jax import config, tree
from prismer_jax.config import values
from prismer_jax.errors import UserError, choose
from prismer_jax.typing import Array

Schedule = Callable[[Any], Any]
Patterns = Sequence[tuple[str, float | Sequence[float] | np.ndarray]]


def _sgd(momentum: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


def _adafactor(
    decay_rate: float = 0.8, clip_threshold: float = 1.0, min_dim_size_to_factor: int = 128
) -> optax.GradientTransformation:
    """Without the learning rate relative to the parameters' scale: the schedule alone says how large a step is."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor),
        optax.clip_by_block_rms(clip_threshold),
    )


def _muon(
    beta: float = 0.95, ns_steps: int = 5, adam_ratio: float = 0.1, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Orthogonalised momentum for kernels; Adam, at `adam_ratio` of the learning rate, for everything else.

    Source: Jordan et al. 2024 (Muon, github.com/KellerJordan/Muon); steps of a kernel are scaled by √max(1, out/in).
    Momentum and state are those of optax.contrib.scale_by_muon, whose loops, unrolled for each kernel, compile slowly.
    """

    def kind(name: str, x: Any) -> str:
        return "kernel" if name.endswith(KERNELS) and x.ndim in (2, 3, 4) else "other"

    def update(updates: Any, state: optax.contrib.MuonState, _: Any = None) -> tuple[Any, optax.contrib.MuonState]:
        mu, count = optax.tree.update_moment(updates, state.mu, beta, 1), state.count + 1
        corrected = optax.tree.bias_correction(mu, beta, count + 1), optax.tree.bias_correction(updates, beta, count)
        momentum = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, *corrected)
        return _orthogonal(momentum, ns_steps, eps), state._replace(count=count, mu=mu)

    kernel = optax.chain(optax.GradientTransformation(optax.contrib.scale_by_muon().init, update))
    adam = optax.chain(optax.scale_by_adam(b1, b2, eps), optax.scale(adam_ratio))
    return optax.partition(
        {"kernel": kernel, "other": adam}, lambda params: jax.tree.map(kind, tree.names(params), params)
    )


KERNELS = ("kernel", "patch_embedding")  # names of what is a matrix, whatever its number of axes
SMALL = 2**16  # elements of a kernel from which on it is orthogonalised on its own
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # x, (xxᵀ)x and (xxᵀ)²x in a step of Jordan et al.


def _orthogonal(updates: Any, steps: int, eps: float) -> Any:
    """Orthogonalises [in, out], [layers, in, out] of a stack, and [h, w, in, out]; small ones of one shape at once."""
    leaves, structure = jax.tree.flatten(updates)
    stacks: dict[Any, dict[int, Array]] = collections.defaultdict(dict)
    for number, x in enumerate(leaves):
        x = x.reshape(1, -1, x.shape[-1]) if x.ndim == 4 else x.reshape(-1, *x.shape[-2:])
        stacks[x.shape[1:], number if x.size >= SMALL else None][number] = x
    for ((fan_in, fan_out), _), stack in stacks.items():
        x = jnp.concatenate([*stack.values()])
        x /= jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + eps

        def step(_: Any, x: Array, wide: bool = fan_in <= fan_out) -> Array:
            square = x @ x.mT if wide else x.mT @ x
            square = NEWTON_SCHULZ[1] * square + NEWTON_SCHULZ[2] * square @ square
            return NEWTON_SCHULZ[0] * x + (square @ x if wide else x @ square)

        x = max(1.0, fan_out / fan_in) ** 0.5 * jax.lax.fori_loop(0, steps, step, x)
        for number, part in zip(stack, jnp.split(x, np.cumsum([*map(len, stack.values())])[:-1]), strict=True):
            leaves[number] = part.reshape(leaves[number].shape)
    return jax.tree.unflatten(structure, leaves)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.scale_by_adam,
    "sgd": _sgd,
    "lion": optax.scale_by_lion,
    "adafactor": _adafactor,
    "muon": _muon,
}

# Progress 0..1 between the end of the warm-up and the last step -> share of the way from end_lr to lr.
DECAYS: dict[str, Callable[[Any, Any], Any]] = {
    "constant": lambda xp, progress: progress * 0 + 1.0,
    "linear": lambda xp, progress: 1.0 - progress,
    "cosine": lambda xp, progress: 0.5 * (1.0 + xp.cos(np.pi * progress)),
}


def make_schedule(
    name: str,
    *,
    lr: float,
    total_steps: int,
    warmup_steps: float = 0,
    start_lr: float = 0.0,
    end_lr: float = 0.0,
    stairs: int = 0,
    warmup_from: int = 0,
) -> Schedule:
    """Returns the learning rate as a function of the step (from 0): linear warm-up from start_lr, then decay to end_lr.

    Without warm-up, 'cosine' is end_lr + (lr - end_lr) * (1 + cos(pi * step / total_steps)) / 2, as in the reference
    (utils.py of NVlabs/prismer). The function takes numbers of the host, touching no device then, or traced ones.

    With `stairs` the decay goes down in so many equal parts of the training, as the reference's does that sets the rate
    once an epoch (train_pretrain.py, train_vqa.py). It then counts from step 0, and the warm-up replaces its start.

    With `warmup_from=1` the first step is one step up the warm-up, as in huggingface/nanoVLM (train.py: get_lr). Its
    warm-up of 3% of the steps is not rounded: where it is shorter than one step, that step exceeds lr.

    Raises:
      UserError: an unknown name, or a warm-up that is longer than the training.
    """
    decay = choose("schedule", name, DECAYS)
    if stairs < 0:
        raise UserError(f"stairs={stairs}: the number of parts in which the rate is constant, or 0 for a smooth decay.")
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(f"The warm-up of {warmup_steps} steps does not fit into {total_steps} steps of training.")

    def at(step: Any) -> Any:
        xp = jnp if isinstance(step, jax.Array) else np
        if stairs:
            progress = xp.clip(step * stairs // max(total_steps, 1) / stairs, 0.0, 1.0)
        else:
            progress = xp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        decayed = end_lr + (lr - end_lr) * decay(xp, progress)
        climbed = (step + warmup_from) / (warmup_steps or 1)
        return xp.where(step < warmup_steps, start_lr + (lr - start_lr) * climbed, decayed)

    return at


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation, and the learning rate of each group as functions of the step, for the log."""

    tx: optax.GradientTransformation
    schedules: Mapping[str, Schedule]


def make(
    params: Any,
    total_steps: int,
    *,
    name: str = "adamw",
    lr: float,
    schedule: str = "cosine",
    warmup_steps: float = 0,
    warmup_share: float | None = None,
    weight_decay: float = 0.05,
    clip_norm: float | None = None,
    lr_mults: Patterns = (),
    wd_mults: Patterns = (),
    frozen: Sequence[str] = (),
    **options: Any,
) -> Optimizer:
    """Makes an optimiser for the trainable parameters.

    Args:
      params: what will be trained, arrays or shapes; only the names of the leaves matter.
      total_steps: where the schedule ends.
      name: 'adamw', 'sgd', 'lion', 'adafactor' or 'muon'.
      lr: the highest learning rate.
      schedule: 'cosine', 'linear' or 'constant'; see `make_schedule`.
      warmup_steps: steps of linear warm-up.
      warmup_share: of the steps, in place of warmup_steps, and not rounded to whole steps.
      weight_decay: decoupled, times the learning rate.
      clip_norm: the gradient's largest global norm.
      lr_mults: [(regex of whole names, factor)]; the first that matches counts, other parameters have 1. The factor
        scales the decay too; a sequence has one of each layer of a stack, which is the first axis.
      wd_mults: likewise for weight_decay.
      frozen: names of parameters that are not trained; a pattern may match these alone.
      **options: of `make_schedule` (start_lr, end_lr, stairs, warmup_from) and of the optimiser itself: b1, b2, eps;
        momentum, nesterov; ...

    Raises:
      UserError: an unknown name or option, a number that no training has, or a regex that matches no parameter.
    """
    if not (lr >= 0 and weight_decay >= 0 and (clip_norm is None or clip_norm > 0)):
        raise UserError(f"{lr=}, {weight_decay=}, {clip_norm=}: two are >= 0, clip_norm is > 0 or None.")
    of_schedule = {key: options.pop(key) for key in ("start_lr", "end_lr", "stairs", "warmup_from") if key in options}
    values.check(of_schedule, values.kinds(make_schedule), "config.optim")
    direction = config.call(choose("optimizer", name, OPTIMIZERS), options, f"optimizer {name!r}")
    if warmup_share is not None:
        if warmup_steps:
            raise UserError("Give the warm-up as steps or as a share of them, not both.")
        warmup_steps = warmup_share * total_steps
    rate = make_schedule(schedule, lr=lr, total_steps=total_steps, warmup_steps=warmup_steps, **of_schedule)
    leaf_names = list(tree.flatten(params))
    lr_mult = _multipliers(lr_mults, [*leaf_names, *frozen], "lr_mults")
    wd_mult = _multipliers(wd_mults, [*leaf_names, *frozen], "wd_mults")

    def clip(updates: Any, _: Any) -> Any:
        factor = clip_norm / jnp.maximum(global_norm(updates), clip_norm)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

    def times(x: Array, factor: np.ndarray) -> Array:  # one, or one of each layer
        return (x.T * jnp.asarray(factor, x.dtype)).T if factor.ndim else x * factor.item()

    def scaled(tensors: Any, factors: Mapping[str, Any]) -> Any:
        return jax.tree.map(lambda name, x: times(x, factors[name]), tree.names(tensors), tensors)

    def decay(updates: Any, params: Any) -> Any:
        return jax.tree.map(jnp.add, updates, scaled(params, {n: weight_decay * x for n, x in wd_mult.items()}))

    parts = [
        *([optax.stateless(clip)] if clip_norm is not None else []),
        direction,
        *([optax.stateless(decay)] if weight_decay else []),
        optax.scale_by_learning_rate(rate),
        *([optax.stateless(lambda updates, _: scaled(updates, lr_mult))] if lr_mults else []),
    ]
    groups = {f"lr/{pattern}": lambda step, factor=factor: rate(step) * np.max(factor) for pattern, factor in lr_mults}
    return Optimizer(optax.chain(*parts), {"lr": rate, **groups})


def global_norm(tensors: Any) -> Array:
    """Returns √Σx², float32. What no preset splits (sharding.presets.LEAST) is one vector: fewer loops to compile."""
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tensors)]
    small, large = [x.ravel() for x in leaves if x.size < 2**10], [x for x in leaves if x.size >= 2**10]
    return jnp.sqrt(sum(jnp.square(x).sum() for x in [jnp.concatenate([*small, jnp.zeros(0)]), *large]))


def _multipliers(patterns: Patterns, leaf_names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    if not values.fits(patterns, Patterns):
        raise UserError(f"{where}={patterns!r}: a list of (regex of names, factor).")
    matches = tree.first_match([pattern for pattern, _ in patterns], leaf_names, where)
    return {name: np.asarray(patterns[matches[name]][1] if name in matches else 1.0) for name in leaf_names}


def split(params: Any, frozen: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (trainable, frozen) as {'a/b/c': leaf}; frozen are those whose whole name matches one of the regexes.

    Only the first is differentiated and given to the optimiser, so that frozen parameters cost neither.

    Raises:
      UserError: a regex matches no parameter, nothing is left to train, or something that is packed.
    """
    flat = tree.flatten(params)
    matches = tree.first_match(frozen, flat, "freeze")
    if len(matches) == len(flat):
        raise UserError(f"freeze: {list(frozen)} freezes every parameter; nothing is left to train.")
    trainable = {k: v for k, v in flat.items() if k not in matches}
    if packed := [k for k, v in trainable.items() if not jnp.issubdtype(v.dtype, jnp.floating)]:
        raise UserError(f"freeze: {packed[0]!r} is quantized (config.model.quantize) but not frozen: freeze it, too.")
    return trainable, {k: v for k, v in flat.items() if k in matches}


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested parameters of `split`'s parts."""
    return tree.unflatten({name: leaf for part in parts for name, leaf in part.items()})
