"""Learning curves below a notebook's cell, drawn anew while a run in the same cell trains."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from IPython import get_ipython
from IPython.display import HTML, Image, display

from prismer_jax import metrics
from prismer_jax.files.storage import PathLike
from prismer_jax.report import page


@contextlib.contextmanager
def curves(workdir: PathLike, every: float = 5.0) -> Iterator[None]:
    """Draws loss, rate and scores of a run while the `with` block trains it, and once more at its end.

    Outside IPython, as in a script that was a notebook, it draws nothing.

    with curves("runs/mine"):
        train(cfg, "runs/mine")

    Args:
      workdir: of the run; what an earlier start has logged there is drawn, too.
      every: seconds between drawings.
    """
    if get_ipython() is None:
        yield
        return
    handle, ended = display(HTML("Curves appear here with the first logged step."), display_id=True), threading.Event()

    def draw() -> None:
        if chart := page.curves(metrics.read(workdir)):
            handle.update(Image(chart))

    def watch() -> None:
        while not ended.wait(every):
            draw()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        draw()
