"""How a run spends its time: what it waits for its loader, which steps were slow, and goodput over all its starts."""

from __future__ import annotations

import json
import logging
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from prismer_jax.files import storage

FILE = "starts.json"  # in the workdir: {'began': seconds since 1970, 'starts': number}
STALLED = 0.2  # share of the time of steps that may pass waiting for the loader before that is said
SLOW = 3.0  # times the median, likewise
LEAST = 5  # stretches of steps, before a median says something
MOST = 10  # lines of a kind; the metrics go on

logger = logging.getLogger(__name__)


class Pace:
    """Measures stretches of steps, from one `measure` to the next; `restart` leaves out what was between.

    Goodput is useful steps over wall time: the share of the time since the first start of the run, restarts and pauses
    between them included, in which its steps would have been taken at the median speed of this start. Compilation,
    evaluation, waiting for data, and steps that were lost with a process and taken again, all lower it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        first_step: int,
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Counts a start of the run, which is its first one at step 0.

        Args:
          workdir: of the run.
          first_step: of this start.
          writes: whether this process counts it; of several, one does.
          clock, now: seconds, monotonic, and since 1970.
        """
        file, record = workdir / FILE, {"began": now(), "starts": 0}
        if first_step and file.exists():
            record = json.loads(file.read_text())
        self.starts, self._began = record["starts"] + 1, record["began"]
        if writes:
            workdir.mkdir(parents=True, exist_ok=True)
            storage.write_json(file, {"began": self._began, "starts": self.starts}, indent=None)
        self._clock, self._now = clock, now
        self._stretches, self._share = [], 0.0  # seconds a step, and what share of the last stretch was waited
        self._lines = {"waited": 0, "slow": 0}
        self.restart(first_step)

    def restart(self, step: int) -> None:
        """Begins a stretch after this step."""
        self._step, self._begin, self._waited = step, self._clock(), 0.0

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields the batches, and measures how long each of them was waited for."""
        begin = self._clock()
        for batch in batches:
            self._waited += self._clock() - begin
            yield batch
            begin = self._clock()

    def measure(self, step: int) -> dict[str, float]:
        """Ends a stretch with this step. Returns metrics, {} where nothing was measured; says what is out of bounds."""
        seconds, steps = self._clock() - self._begin, step - self._step
        if steps < 1 or seconds <= 0:
            return {}
        share, each, now = self._waited / seconds, seconds / steps, f"steps {self._step + 1} to {step}"
        if min(share, self._share) > STALLED:  # in one alone a checkpoint may have been written
            self._say("waited", f"{now}: {share:.0%} of the time was spent waiting for the loader; raise num_workers.")
        if len(self._stretches) >= LEAST and each > SLOW * (median := statistics.median(self._stretches)):
            self._say("slow", f"{now} took {each:.3g} s each, {each / median:.1f} times the median of {median:.3g} s.")
        self._stretches, self._share = [*self._stretches[-999:], each], share
        useful = step * statistics.median(self._stretches)
        self.restart(step)
        return {"waiting_for_data": share, "goodput": min(1.0, useful / max(self._now() - self._began, 1e-9))}

    def _say(self, kind: str, line: str) -> None:
        self._lines[kind] += 1
        if self._lines[kind] <= MOST:
            logger.warning("%s%s", line, " More such lines are left out." if self._lines[kind] == MOST else "")
