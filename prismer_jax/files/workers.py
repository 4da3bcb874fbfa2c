"""Worker processes on the data side: how they are started, and that none is left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from prismer_jax.errors import UserError


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context() -> Any:
    """Of multiprocessing: forked processes share a source's memory, millions of photos; but JAX has threads."""
    fork = "fork" in multiprocessing.get_all_start_methods() and "jax" not in sys.modules
    return multiprocessing.get_context("fork" if fork else "spawn")


def begin() -> None:
    """To be called first in a worker: Ctrl-C, which reaches all, is its parent's to handle; it ends when that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def ordered_map(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[Iterable[Any]]:
    """Yields the results of function(item), in order, from so many processes, or from this one.

    Raises:
      UserError: a worker died.
    """
    if min(processes, len(items)) <= 1:
        yield map(function, items)
        return
    pool = ProcessPoolExecutor(min(processes, len(items)), context(), begin)
    try:
        yield pool.map(function, items)
    except BrokenProcessPool:
        raise UserError("A worker process died, out of memory perhaps. Try fewer --processes.") from None
    finally:
        pool.shutdown(cancel_futures=True)
