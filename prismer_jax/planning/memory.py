"""How much memory a training step takes: python -m prismer_jax.train --config FILE.py --estimate"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from prismer_jax import config, runtime, sharding
from prismer_jax.planning import stand_ins


def main(spec: str, overrides: Sequence[str]) -> None:
    """Prints what the step of a config takes on the devices that are here; no data and no weights need be.

    Args:
      spec, overrides: of `config.load`.

    Raises:
      UserError: the config cannot be used, or needs its data to be planned.
    """
    runtime.use_compilation_cache()
    runtime.use_xla_sums()
    cfg = config.strict(config.load(spec, overrides))
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    sharding.check_batch(cfg.batch_size, mesh, cfg.get("accumulate", 1))
    step, batch = stand_ins.step(cfg, mesh)
    print(*lines(step.state, step.trainable, batch, step.compile(batch)), sep="\n")


def lines(state: Any, trainable: Iterable[Any], batch: Any, compiled: Any) -> list[str]:
    """Lines that say how much memory a training step takes, gradients as if all of them were there at once.

    Activations are what the compiler keeps beside these: also what is computed on the way.

    Args:
      state: arrays or shapes; 'params' and 'opt' are told apart from the rest.
      trainable: those of the parameters that are trained.
      batch: of a step, all devices together.
      compiled: the step, compiled for the devices that it will run on: another backend needs another amount.
    """

    def size(tree: Any) -> str:
        leaves = jax.tree.leaves(tree)
        return f"{sum(x.size * x.dtype.itemsize for x in leaves) / 2**30:.2f} GiB"

    def count(tree: Any) -> int:
        return sum(x.size for x in jax.tree.leaves(tree))

    lines = [
        f"parameters         {count(state['params']):>15,}  {size(state['params']):>10}",
        f"  of them trained  {count(trainable):>15,}  {size(trainable):>10}",
        f"gradients          {count(trainable):>15,}  {size(trainable):>10}",
        f"optimizer's state  {count(state['opt']):>15,}  {size(state['opt']):>10}",
        f"batch              {count(batch):>15,}  {size(batch):>10}",
    ]
    used = compiled.memory_analysis()
    if used is None:  # not every backend tells
        return lines
    device, gradients = jax.devices()[0], share(trainable)
    return [
        *lines,
        f"state, on each device                {share([state['params'], state['opt']]) / 2**30:>8.2f} GiB",
        f"activations, on each device          {max(0, used.temp_size_in_bytes - gradients) / 2**30:>8.2f} GiB",
        f"a step takes {peak(used) / 2**30:.2f} GiB of each of {jax.device_count()} devices ({device.device_kind}), "
        f"{used.temp_size_in_bytes / 2**30:.2f} GiB of it for activations and gradients",
    ]


def share(tree: Any) -> int:
    """Returns the bytes of a tree of arrays or shapes that one device holds; all of those that have no sharding."""

    def local(x: Any) -> int:
        shape = x.shape if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(local, jax.tree.leaves(tree)))


def peak(used: Any) -> int:
    """Returns the bytes of a device that a program takes at once, from a compiled program's `memory_analysis()`.

    Its own `peak_memory_in_bytes` is no use: on a CPU it lacks the temporaries, and on a TPU it counts what lies in the
    memory on the chip, too.
    """
    whole = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return whole - used.alias_size_in_bytes + used.generated_code_size_in_bytes
