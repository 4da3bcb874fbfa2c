"""Several processes: how they find each other, and whether they are started alike."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from prismer_jax import config, errors
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.sharding import barrier

POLL, GRACE = 5, 10  # seconds: between two looks for another's error, and for this one to finish a checkpoint, or fail
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
    _end_together()


def _end_together() -> None:
    """Has all processes end where one fails, and say its error, in place of waiting for it in a collective."""
    from jax._src import distributed  # there is no public way to what processes tell each other (jax 0.10 to 0.12)

    service, index = distributed.global_state.client, distributed.global_state.process_id
    failed = threading.Event()

    def tell(line: str, status: int = 2) -> None:
        failed.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the others are gone already
            service.key_value_set("failed", f"process {index}: {line}", allow_overwrite=True)
        leave(status)

    def leave(status: int) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            service.wait_at_barrier("failed", 1000 * (POLL + GRACE + 5))
        time.sleep(0 if index else 1)  # the service is a part of process 0, and JAX aborts those that miss it
        sys.stdout.flush()
        os._exit(status)  # at an ordinary exit JAX waits for processes that wait for this one

    def show(kind: type[BaseException], error: BaseException, trace: Any, shown: Any = sys.excepthook) -> None:
        shown(kind, error, trace)
        tell(f"{kind.__name__}: {error}", 1)

    def listen() -> None:
        line = None
        while line is None:
            time.sleep(POLL)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has failed
                line = service.key_value_try_get("failed")
        if not failed.wait(GRACE):
            print(line, file=sys.stderr, flush=True)
            leave(2)

    errors.TOLD.append(tell)
    sys.excepthook = show
    threading.Thread(target=listen, daemon=True).start()


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
