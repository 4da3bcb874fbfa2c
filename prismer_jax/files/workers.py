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
from multiprocessing.connection import wait
from typing import Any

from prismer_jax.errors import UserError

POLL = 0.5  # seconds between two looks at how far the workers are
THREADED = ("jax", "array_record.python.array_record_data_source")  # modules that start threads, once they are used


def context() -> Any:
    """Returns how to start workers: by fork, which shares a source's memory, or by spawn where modules have threads.

    Forked after its parent has closed an ArrayRecord, a process that reads one may die (array_record 0.8.6).
    """
    fork = "fork" in multiprocessing.get_all_start_methods() and not any(name in sys.modules for name in THREADED)
    return multiprocessing.get_context("fork" if fork else "spawn")


def begin() -> None:
    """Prepares a worker: Ctrl-C, which reaches all processes, is left to its parent, and it ends when that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def run(
    function: Callable[[int, Callable[[], None]], None],
    processes: int,
    bar: contextlib.AbstractContextManager[Callable[[int], None]],
) -> set[int]:
    """Runs function(number, advance) in so many processes; returns, at their end, the exit statuses of those that died.

    Args:
      function: calls `advance` after each piece of work.
      bar: as of `progress.bar`, entered after the processes have started: it has a thread and locks.

    Raises:
      UserError: of the first process that raised one or an OSError; the others are ended.
    """
    counter, errors = context().Value("q", 0), context().SimpleQueue()
    started = [
        context().Process(target=_worker, args=(function, number, counter, errors), daemon=True)
        for number in range(processes)
    ]
    for worker in started:
        worker.start()
    try:
        with bar as advance:
            seen = 0
            while any(worker.is_alive() for worker in started) and errors.empty():
                wait([worker.sentinel for worker in started if worker.is_alive()], timeout=POLL)
                now = counter.value
                advance(now - seen)
                seen = now
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()
    if not errors.empty():
        raise UserError(errors.get())
    return {worker.exitcode for worker in started if worker.exitcode}


def _worker(function: Callable[[int, Callable[[], None]], None], number: int, counter: Any, errors: Any) -> None:
    begin()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it puts away what is half-written

    def advance() -> None:
        with counter.get_lock():
            counter.value += 1

    try:
        function(number, advance)
    except (UserError, OSError) as error:
        errors.put(str(error))


@contextlib.contextmanager
def ordered_map(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[Iterable[Any]]:
    """Yields the results of function(item), in order, from so many processes, or from this one.

    Each process gets the function once, which may have a source of millions of photos with it.

    Raises:
      UserError: a worker died.
    """
    if min(processes, len(items)) <= 1:
        yield map(function, items)
        return
    pool = ProcessPoolExecutor(min(processes, len(items)), context(), _begin_with, (function,))
    try:
        yield pool.map(_call, items)
    except BrokenProcessPool:
        raise UserError("A worker process died, out of memory perhaps. Try fewer --processes.") from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]  # of a process of `ordered_map`


def _begin_with(function: Callable[[Any], Any]) -> None:
    global _function
    begin()
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
