"""What every program does before its first array: caches, warnings; and profiles."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> pathlib.Path:
    """Returns the folder of everything that can be made again: $PRISMER_CACHE_DIR or ~/.cache/prismer_jax."""
    return pathlib.Path(os.environ.get("PRISMER_CACHE_DIR") or pathlib.Path.home() / ".cache" / "prismer_jax")


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the second start of anything is a quick one.

    JAX's own setting ($JAX_COMPILATION_CACHE_DIR, empty to switch it off) wins.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def use_xla_sums() -> None:
    """Has XLA itself compile the sums of a CPU's training step, which comes before the first array.

    Those of a backward pass its library YNNPACK makes slowly in jaxlib 0.10.2, not in 0.11 or 0.12: a step of Prismer
    takes 0.85 of the time without, while what has no backward pass is faster with it. $XLA_FLAGS wins.
    """
    name, told = "--xla_cpu_experimental_ynn_fusion_type", os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and name not in told:
        os.environ["XLA_FLAGS"] = f"{told} {name}=-reduce".strip()


@contextlib.contextmanager
def profiled(folder: pathlib.Path, first: int = 0, steps: int = 5) -> Iterator[Callable[[int, Any], None]]:
    """Yields what takes (step of this start, state before it) and records `steps` of them from `first` on; 0 is never.

    The profile, for TensorBoard, is written then, or at the end of a run of fewer steps.
    """
    import jax

    with contextlib.ExitStack() as recording:

        def before(step: int, state: Any) -> None:
            if first and step in (first, first + steps):
                jax.block_until_ready(state)  # steps before it may still run
                recording.close()
            if first and step == first:
                recording.enter_context(jax.profiler.trace(str(folder)))

        yield before


def by_shape(jitted: Any, compiled: Any, first: Mapping[str, Any]) -> Any:
    """Returns (state, batch) -> result: `compiled` for batches of the shapes of the first, `jitted` for others."""

    def shapes(batch: Mapping[str, Any]) -> dict[str, Any]:
        return {key: array.shape for key, array in batch.items()}

    compiled_for = shapes(first)
    return lambda state, batch: (compiled if shapes(batch) == compiled_for else jitted)(state, batch)


def log_warnings() -> None:
    """Sends warnings of the loader and of libraries to stderr, one plain line each."""
    logging.basicConfig(level=logging.WARNING)
    # Some of the libraries add their handler when they are imported; one that collects records is left as it is.
    for handler in logging.getLogger().handlers:
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setFormatter(logging.Formatter("warning: %(message)s"))
