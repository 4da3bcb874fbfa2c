"""Several processes: how they find each other, and whether they are started alike."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax

from prismer_jax import config
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.sharding import barrier

_CALLS = itertools.count()  # a key can be set once


def join() -> None:
    """Joins the other processes of a run; to be called before any array is made.

    Where and how many the others are, JAX finds out from the cluster (Cloud TPU, Slurm, Open MPI) or from
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      UserError: the others cannot be found.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdigit():
            raise UserError(f"{name} is {text!r}; it must be a number.")
        return None if text is None else int(text)

    try:
        jax.distributed.initialize(address, number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID"))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"Cannot join the other processes: {error} Set JAX_COORDINATOR_ADDRESS or run one.") from error


def check_start(cfg: config.Section, workdir: config.Workdir) -> None:
    """Raises as `check_same` unless all have one config and see the same checkpoints: each finds the latest itself."""
    check_same("config", json.loads(config.to_json(cfg)))
    steps = [name for name in storage.names(os.fspath(workdir.path / "checkpoints")) if name.isdigit()]
    check_same("workdir", {"checkpoints": steps})


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises the same UserError in all processes unless each has the same values, which are what JSON can write."""
    from jax._src import distributed

    if (service := distributed.global_state.client) is None:
        return
    place = f"{what}/{next(_CALLS)}"
    service.key_value_set(f"{place}/{jax.process_index()}", json.dumps(values))
    barrier(what)
    every = [json.loads(service.blocking_key_value_get(f"{place}/{i}", 60_000)) for i in range(jax.process_count())]
    for index, other in enumerate(every):
        if keys := [key for key in {**every[0], **other} if every[0].get(key) != other.get(key)]:
            first, second = (values.get(keys[0], "absent") for values in (every[0], other))
            raise UserError(
                f"The {what} differs among processes: {keys[0]} is {first!r} in 0, {second!r} in {index}. "
                "Start all with the same command, and a workdir that all share."
            )
