"""How far long work is: a bar with rate and time left on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

EVERY = 30.0  # seconds between lines where there is no terminal


@contextlib.contextmanager
def bar(
    title: str,
    total: int,
    *,
    unit: str = "photos",
    done: int = 0,
    enabled: bool = True,
    stream: Any = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[..., None]]:
    """Yields `advance(count=1)`, to be called after each piece of work.

    The clock starts with the first call, whose work included compilation; from the second on there are a rate and the
    time left, both of this start's work alone.

    Args:
      title: what is done, before the bar.
      total: how much there is, in `unit`s.
      unit: what is counted, in the plural.
      done: how much an earlier start has done.
      enabled: False shows nothing, in all processes but one.
      stream: default stderr.
      clock: seconds.
    """
    from rich import progress
    from rich.console import Console

    console = Console(file=stream, stderr=stream is None)
    live = enabled and console.is_terminal
    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
    ]
    with progress.Progress(*columns, console=console, transient=True, disable=not live) as shown:
        task = shown.add_task(title, total=total, completed=done, rate="starting")
        at, started, first, said = done, None, done, clock()

        def advance(count: int = 1) -> None:
            nonlocal at, started, first, said
            at, now = at + count, clock()
            if started is None:
                started, first = now, at
            rate = ""
            if now > started and at > first:
                speed = (at - first) / (now - started)
                rate = f"{speed:.3g} {unit}/s, {datetime.timedelta(seconds=round((total - at) / speed))} left"
            shown.update(task, completed=at, rate=rate)
            if enabled and not live and now - said >= EVERY:
                line = ", ".join(filter(None, (f"{title}: {at} of {total}", rate)))
                print(line, file=sys.stderr if stream is None else stream, flush=True)
                said = now

        yield advance
