"""How much memory a training step takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax


def lines(state: Any, trainable: Iterable[Any], batch: Any, compiled: Any) -> list[str]:
    """Lines that say how much memory a training step takes.

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
        f"optimizer's state  {count(state['opt']):>15,}  {size(state['opt']):>10}",
        f"batch              {count(batch):>15,}  {size(batch):>10}",
    ]
    used = compiled.memory_analysis()
    if used is None:  # not every backend tells
        return lines
    peak = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    device = jax.devices()[0]
    return [
        *lines,
        f"a step takes {peak / 2**30:.2f} GiB of each of {jax.device_count()} devices ({device.device_kind}), "
        f"{used.temp_size_in_bytes / 2**30:.2f} GiB of it for activations and gradients",
    ]
