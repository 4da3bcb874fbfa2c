"""How the bar of progress.py looks: that of rich on a terminal, and one line of HTML below a notebook's cell."""

from __future__ import annotations

import html
import time
from typing import Any

from rich import console, progress

EVERY = 0.25  # seconds between drawings


def start(cell: bool, stream: Any, transient: bool, shown: dict[str, Any]) -> tuple[Any, Any]:
    """Returns a bar that is drawn, in a notebook's cell or on a terminal, and the number of its one task.

    Args:
      cell: whether `stream` is that of a notebook's cell.
      stream: where it is drawn.
      transient: it disappears at the end.
      shown: total, completed, what and words.
    """
    bar = (Notebook if cell else terminal)(stream, transient)
    return bar, bar.add_task("", **shown)


def terminal(stream: Any, transient: bool) -> progress.Progress:
    """Returns rich's bar, started."""
    text = [progress.TextColumn(f"{{task.fields[{name}]}}") for name in ("what", "words")]
    columns = [text[0], progress.BarColumn(), progress.MofNCompleteColumn(), text[1]]
    shown = console.Console(file=stream, force_terminal=True)
    bar = progress.Progress(*columns, console=shown, transient=transient, refresh_per_second=4)
    bar.start()
    return bar


class Notebook:
    """A bar with as much of the interface of rich's as progress.Bar needs."""

    def __init__(self, stream: Any, transient: bool) -> None:
        """Makes a bar, which is drawn from `add_task` on; a transient one disappears at the end."""
        from IPython import display  # only notebooks have it

        self.console, self._display, self._stream = self, display, stream
        self._transient, self._drawn = transient, 0.0

    def add_task(self, _: str, **fields: Any) -> None:
        """Takes what is shown, total, completed, what and words, and draws it."""
        self._fields = fields
        self._handle = self._display.display(self._display.HTML(self.line()), display_id=True)

    def update(self, _: Any, **fields: Any) -> None:
        """Takes what has changed of it, and draws that if the last drawing was not just now."""
        kind = self._fields["what"]
        self._fields |= fields
        if time.monotonic() - self._drawn >= EVERY or self._fields["what"] != kind:
            self._draw(self.line())

    def stop(self) -> None:
        self._draw("" if self._transient else self.line())

    def print(self, line: str, **_: Any) -> None:
        """Prints a line of its own."""
        print(line, file=self._stream, flush=True)

    def line(self) -> str:
        """Returns the bar as HTML."""
        total, done = self._fields["total"], self._fields["completed"]
        share = "" if total is None else f'value="{done:.6g}" max="{total:.6g}"'
        amount = f"{done:.0f}" + ("" if total is None else f"/{total:.0f}")
        what, words = (html.escape(self._fields[name]) for name in ("what", "words"))
        return f'<progress style="width: 16em" {share}></progress> {what} {amount} &ensp; {words}'

    def _draw(self, line: str) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self._display.HTML(line))
