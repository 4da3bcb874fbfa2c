"""How far long work is: a bar with rate and time left on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

EVERY = 30.0  # seconds between lines where there is no terminal


@contextlib.contextmanager
def bar(title: str, total: float | None, *, unit: str = "photos", **options: Any) -> Iterator[Callable[..., None]]:
    """Yields `advance(count=1)`, to be called after each piece of work; it shows the rate and the time left.

    `unit` is what is counted, in the plural; the other arguments are those of `Bar`.
    """
    with Bar(title, total, **options) as shown:

        def advance(count: float = 1) -> None:
            shown.advance(count)
            words = [f"{speed:.3g} {unit}/s"] if (speed := shown.speed()) else []
            if (left := shown.seconds_left()) is not None:
                words.append(f"{duration(left)} left")
            amount = f"{shown.done:.0f}" + ("" if total is None else f" of {total:.0f}")
            shown.show(words, ", ".join([f"{title}: {amount}", *words]))

        yield advance


class Bar:
    """Counts work and measures its speed; what is said beside the bar, or in the lines, is the caller's.

    The clock starts with the first piece of work, which included compilation; from the second on there are a speed and
    a time left, both of this start's work alone, without pauses.
    """

    def __init__(
        self,
        title: str,
        total: float | None,
        *,
        done: float = 0,
        enabled: bool = True,
        live: bool | None = None,
        every: float | None = None,
        ends: bool = False,
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a bar, which is shown within `with`.

        Args:
          title: what is done.
          total: how much there is, by earlier starts as well; None if that is not known.
          done: how much an earlier start has done.
          enabled: False shows nothing, in all processes but one.
          live: a bar instead of lines; default whether the stream is a terminal.
          every: seconds between lines, default EVERY.
          ends: the first and the last piece of work get a line in any case.
          stream, clock: stderr and a clock of seconds, unless given.
        """
        self.total, self.done = total, done
        self._title, self._enabled, self._clock, self._ends = title, enabled, clock, ends
        self._stream = sys.stderr if stream is None else stream
        self._enabled &= self._stream is not None  # as Python has it where stderr is closed
        self._cell = type(self._stream).__module__ == "ipykernel.iostream"  # of a notebook
        self._live = self._enabled and (self._cell or self._stream.isatty() if live is None else live)
        self._every = EVERY if every is None else every
        self._said = None if ends else clock()
        self._started: float | None = None  # by `_working`
        self._first = 0.0  # what was done when the clock started
        self._paused = 0.0  # seconds
        self._bar: Any = None

    def __enter__(self) -> Bar:
        if self._live:
            bars = importlib.import_module("prismer_jax.files.bars")  # which have rich, or IPython, behind them
            shown = {"total": self.total, "completed": self.done, "what": self._title, "words": "starting"}
            self._bar, self._task = bars.start(self._cell, self._stream, not self._ends, shown)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: float = 1) -> None:
        """Counts work that is done."""
        self.done += count
        if self._started is None:
            self._started, self._first = self._working(), self.done
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def speed(self) -> float | None:
        """Returns how much is done a second; None before the second piece of work."""
        if self._started is None or self.done <= self._first:
            return None
        seconds = self._working() - self._started
        return (self.done - self._first) / seconds if seconds > 0 else None

    def seconds_left(self) -> float | None:
        """Returns how long the rest will take, pauses not counted; None where speed or total are not known."""
        speed = self.speed()
        return None if speed is None or self.total is None else (self.total - self.done) / speed

    def show(self, words: Sequence[str], line: str) -> None:
        """Shows words beside the bar or, where there is no terminal, prints the line if it is time for one."""
        if self._bar is not None:
            self._bar.update(self._task, words=", ".join(words))
            return
        now = self._clock()
        due = self._said is None or now - self._said >= self._every or (self._ends and self.done >= self.total)
        if self._enabled and due:
            self._said = now
            print(line, file=self._stream, flush=True)

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._enabled:
            print(line, file=self._stream, flush=True)

    @contextlib.contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Leaves the time inside out of the speed, and says beside the bar what is done in it."""
        if self._bar is not None:
            self._bar.update(self._task, what=what)
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin
            if self._bar is not None:
                self._bar.update(self._task, what=self._title)

    def _working(self) -> float:
        """Returns the clock's time, which stands still in pauses."""
        return self._clock() - self._paused


def duration(seconds: float) -> str:
    """Returns seconds as minutes and seconds, 1:05, or hours, minutes and seconds, 2:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
