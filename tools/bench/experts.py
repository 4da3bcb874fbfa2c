"""Speed and memory of the experts, beside those of the official PyTorch code: a part of tools.bench.

Each expert is a worker process of its own (python -m tools.bench.experts EXPERT BATCH DTYPE), and so is the reference
(reference/run_expert.py): some batches of ours, some of theirs, in turn, so that a noisy machine is as noisy for both.
The fastest batch of each counts. Networks only, on random 480x480 photos and fresh weights; peak memory is that of the
process.
"""

from __future__ import annotations

import pathlib
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import runtime, sharding
from prismer_jax.experts import EXPERTS, Student

from .worker import beside, our_command

SIDE = 480
NETWORKS = {**EXPERTS, Student.name: Student}  # the reference has no student
COLUMNS = ("expert", "images/s", "reference", "ratio", "peak GB", "reference")


def their_command(python: str, reference: pathlib.Path, name: str, batch: int) -> list[str]:
    script = pathlib.Path(__file__).with_name("reference") / "run_expert.py"
    return [python, str(script), str(reference.resolve()), name, str(batch)]


def measure(
    experts: Sequence[str],
    reference: pathlib.Path | None,
    python: str,
    *,
    batch: int = 4,
    dtype: str = "float32",
    seconds: float = 10,
    against: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Prints a line for each expert, and returns them: photos a second and peak gigabytes of ours, and of theirs.

    Args:
      experts: names.
      reference: a checkout of NVlabs/prismer.
      python: the interpreter for it, which has PyTorch.
      batch: photos at a time.
      dtype: that ours compute in.
      seconds: how long each expert is measured at least; two turns of each code in any case.
      against: a checkout of this project that is measured in place of the original.
    """
    print("{:<16}{:>10}{:>12}{:>8}{:>10}{:>12}".format(*COLUMNS), flush=True)
    table = []
    for name in experts:
        words = name, str(batch), dtype
        commands = [our_command(sys.modules[__name__], *words)]
        if against is not None:
            commands.append(our_command(sys.modules[__name__], *words, checkout=against))
        elif reference is not None:
            commands.append(their_command(python, reference, name, batch))
        workers = beside(commands, seconds)
        rates = [batch / min(one.seconds) for one in workers]
        peaks = [one.last / 1e9 for one in workers]
        if len(workers) == 2:
            cells = f"{rates[0]:>10.2f}{rates[1]:>12.2f}{rates[0] / rates[1]:>8.2f}{peaks[0]:>10.2f}{peaks[1]:>12.2f}"
        else:
            cells = f"{rates[0]:>10.2f}{'-':>12}{'-':>8}{peaks[0]:>10.2f}{'-':>12}"
        print(f"{name:<16}{cells}", flush=True)
        table.append(dict(row=name, a_second=rates, peak_gb=peaks))
        if len(workers) == 2:
            table[-1]["ratio"] = rates[0] / rates[1]
    return table


def main(name: str, batch: int, dtype: str) -> None:
    """The worker of an expert; see reference/run_expert.py for what it says and when."""
    runtime.use_compilation_cache()
    mesh = sharding.make_mesh()
    expert = NETWORKS[name](dtype=dtype)
    variables = jax.device_put(expert.random_variables(), sharding.replicated(mesh))
    photo = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    prepared = [expert.prepare(photo)] * batch
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(expert.run(variables, prepared, mesh))
        print(time.perf_counter() - start, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
