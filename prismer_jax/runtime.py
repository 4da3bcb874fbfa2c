"""What every program does before its first array: caches, warnings; and profiles."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any


def cache_dir() -> pathlib.Path:
    """The folder of everything that can be made again: $PRISMER_CACHE_DIR or ~/.cache/prismer_jax."""
    return pathlib.Path(os.environ.get("PRISMER_CACHE_DIR") or pathlib.Path.home() / ".cache" / "prismer_jax")


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the second start of anything is a quick one.

    JAX's own setting ($JAX_COMPILATION_CACHE_DIR, empty to switch it off) wins.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def profile_step(step: int, folder: pathlib.Path, first: int = 0, steps: int = 5) -> None:
    """Records a profile of `steps` steps from step `first` of this start on, for TensorBoard; 0 is never."""
    import jax

    if first and step == first:
        jax.profiler.start_trace(str(folder))
    if first and step == first + steps:
        jax.profiler.stop_trace()


def by_shape(jitted: Any, compiled: Any, batches: Sequence[Any]) -> Any:
    """Returns (state, batch) -> result: `compiled` for batches of the shapes of these, `jitted` when others come."""
    known = [{key: array.shape for key, array in batch.items()} for batch in batches]
    return lambda state, batch: (compiled if {k: a.shape for k, a in batch.items()} in known else jitted)(state, batch)


class Interrupts:
    """Notes the first SIGINT or SIGTERM while a loop runs, which looks at `asked` after each step; a second one raises.

    An exception that is raised wherever Python happens to be can be swallowed there, by a destructor or a callback of a
    library, and the signal would be lost. Outside of the main thread, where Python takes no signals, it does nothing.
    What comes within AGAIN of the first is the same one: `timeout` and schedulers signal a process and its group.

    Attributes:
      asked: whether a signal came.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C or a notebook's "interrupt", and a preemption
    AGAIN = 1.0  # seconds

    def __init__(self) -> None:
        self.asked, self._first = False, 0.0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, *_: Any) -> None:
        if self.asked:
            if time.monotonic() - self._first < self.AGAIN:
                return
            raise KeyboardInterrupt
        self.asked, self._first = True, time.monotonic()
        # Not `print`: what the signal interrupted may be writing, too.
        os.write(2, b"\nstopping after this step; once more stops at once\n")


def log_warnings() -> None:
    """Sends warnings of the loader and of libraries to stderr, one plain line each."""
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
