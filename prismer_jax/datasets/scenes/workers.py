"""Renders scenes in several processes.

The workers are plain child processes that import NumPy and OpenCV only. (multiprocessing would import the main program
again in each of them, with JAX, and forking a process that runs JAX can hang.)
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cv2

from prismer_jax.datasets.scenes.generator import Settings, example
from prismer_jax.files.workers import cores

_WORKER = "from prismer_jax.datasets.scenes import workers; workers.work()"
FEW = 64  # so few scenes are rendered here: faster than starting workers


def render(settings: Settings, workers: int | None = None) -> Iterator[dict[str, Any]]:
    """The scenes in order; worker w of n renders w, w + n, w + 2n ... and sends them through a pipe.

    Yields the arguments of `records.encode`. There are as many workers as processor cores unless it is said.
    """
    workers = workers or cores()
    if settings.count <= FEW:
        yield from (example(settings, index) for index in range(settings.count))
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one thread a process, not one a core
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,  # Ctrl-C reaches the builder alone, which ends its workers
        )
        for _ in range(workers)
    ]
    try:
        for start, process in enumerate(processes):
            process.stdin.write(pickle.dumps((settings, start, workers)))
            process.stdin.close()
        for index in range(settings.count):
            yield pickle.load(processes[index % workers].stdout)
    except (EOFError, BrokenPipeError):
        raise RuntimeError("A worker that renders scenes has died; its message is above.") from None
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()


def work() -> None:
    """The main program of a worker: reads what to render from stdin, writes pickled examples to stdout."""
    cv2.setNumThreads(1)
    settings, start, step = pickle.load(sys.stdin.buffer)
    try:
        for index in range(start, settings.count, step):
            pickle.dump(example(settings, index), sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # the builder has been killed
        os._exit(1)
