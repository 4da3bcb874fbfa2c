"""A worker of tools.bench, which does its work once a line; the Pythons of both sides can import it."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(prepare: Callable[[], Callable[[], Any]]) -> None:
    """Prints 'ready'; for every line on stdin does what `prepare` returned once and prints the seconds.

    With one core alone they are the processor's. At the end of stdin it prints the process's peak memory in bytes.
    """
    clock = time.perf_counter if len(os.sched_getaffinity(0)) > 1 else time.process_time
    with contextlib.redirect_stdout(sys.stderr):  # libraries say this and that
        work = prepare()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = clock()
        work()
        print(clock() - start, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
