"""What every program does before its first array: caches, warnings; and profiles."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterable
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


def memory(state: Any, trainable: Iterable[Any], batch: Any, compiled: Any) -> list[str]:
    """Lines that say how much memory a training step takes.

    Args:
      state: arrays or shapes; 'params' and 'opt' are told apart from the rest.
      trainable: those of the parameters that are trained.
      batch: of a step, all devices together.
      compiled: the step, compiled for the devices that it will run on: another backend needs another amount.
    """
    import jax

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
