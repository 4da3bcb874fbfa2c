"""SIGINT and SIGTERM in training: the step is finished first, by one process or by all."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any


class Interrupts:
    """Notes the first SIGINT or SIGTERM while a loop runs, which looks at `asked` after each step; a second one raises.

    An exception that is raised wherever Python happens to be can be swallowed there, by a destructor or a callback of a
    library, and the signal would be lost. Outside of the main thread, where Python takes no signals, it does nothing.
    What comes within AGAIN of the first is the same one: `timeout` and schedulers signal a process and its group.

    Of several processes all have to stop after the same step. There SIGTERM, of one or of all, is left to JAX's
    preemption service, which agrees on it; Ctrl-C stops them without a checkpoint.

    Attributes:
      asked: whether a signal came.
      preempted: whether it was SIGTERM.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C or a notebook's "interrupt", and a preemption
    AGAIN = 1.0  # seconds

    def __init__(self, processes: int = 1) -> None:
        self.asked = self.preempted = False
        self._first, self._together = 0.0, processes > 1
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            signals = self.SIGNALS[:1] if self._together else self.SIGNALS
            self._earlier = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Returns whether to stop after this step; to be asked at each one."""
        if self._together:
            from jax.experimental import multihost_utils

            self.preempted = multihost_utils.reached_preemption_sync_point(step)
        return self.asked or self.preempted

    def _note(self, number: int, _: Any) -> None:
        if self.asked:
            if time.monotonic() - self._first < self.AGAIN:
                return
            raise KeyboardInterrupt
        self.asked, self._first, self.preempted = True, time.monotonic(), number == signal.SIGTERM
        # Not `print`: what the signal interrupted may be writing, too.
        os.write(2, b"\nstopping after this step; once more stops at once\n")
