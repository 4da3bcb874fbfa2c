"""A worker of tools.bench, which does its work once a line; the Pythons of both sides can import it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(prepare: Callable[[], Callable[[], Any]]) -> None:
    """Prints 'ready'; for every line on stdin does what `prepare` returned once and prints the seconds.

    With one core alone they are the processor's. At the end of stdin it prints the process's peak memory in bytes, and
    behind it the bytes that XLA counts as the work's temporaries, where `work.temporaries` says them.
    """
    clock = time.perf_counter if len(os.sched_getaffinity(0)) > 1 else time.process_time
    with contextlib.redirect_stdout(sys.stderr):  # libraries say this and that
        work = prepare()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = clock()
        work()
        print(clock() - start, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak, getattr(work, "temporaries", ""), flush=True)


def serve_row(rows: Mapping[str, Callable[[Any], Callable[[], Any]]], row: str, settings: str) -> None:
    """Is the worker of a row, which is prepared from the JSON file of settings."""
    serve(lambda: rows[row](json.loads(pathlib.Path(settings).read_text())))


def steps_of(model: Any, optimizer: Any, batch: Mapping[str, Any]) -> Callable[[], float]:
    """Returns a function that takes a step of a model of PyTorch that says its own loss, and returns it."""

    def step() -> float:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
