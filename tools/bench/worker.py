"""A worker process of a benchmark, which does one round of work whenever it is told to.

It says 'ready', then the seconds of each round, and at the end of its input a number: its peak memory, say. Two codes
that are compared work in turn, one round each, so that a noisy machine is as noisy for both.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence

from prismer_jax.errors import UserError


class Worker:
    """A process that works for one round when it is told to.

    Attributes:
      seconds: that each round took, as the process says.
      last: the number that it says at its end.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.last = 0
        self.ready = self.process.stdout.readline().strip() == "ready"

    def step(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{' '.join(self.process.args)}: ended with status {self.process.wait()}; see above.")
        self.seconds.append(float(line))

    def close(self) -> None:
        rest, _ = self.process.communicate()
        self.last = int(rest or 0)


@contextlib.contextmanager
def worker(command: Sequence[str]) -> Iterator[Worker]:
    """Starts a worker that is ended when the block ends."""
    process = Worker(command)
    try:
        yield process
    finally:
        process.close()
