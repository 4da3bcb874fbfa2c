"""How long the quickstart takes to its first step, after its process starts: a part of tools.bench.

    cold   nothing is compiled yet: the folders of compiled programs are new ones
    warm   the same command again

Each start is a process of its own, which is ended as soon as it says that its first step is done. A start that is not
counted renders the quickstart's scenes, where they are not there. The median of the starts counts, by the clock and in
the processor's time, of all threads. Another checkout of this project starts in turn with this one.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prismer_jax.errors import UserError
from prismer_jax.files import storage

FIRST = "first step after"  # what train.py says then
STARTS = 3  # of each kind
TARGETS = {"cold": 12.0, "warm": 5.0}  # seconds on two cores
ROOT = pathlib.Path(__file__).parents[2]


class Start(NamedTuple):
    """Seconds by the clock, and of the processor, until the first step was done."""

    wall: float
    processor: float


def command(config: str, workdir: str) -> list[str]:
    return [sys.executable, "-m", "prismer_jax.train", "--config", config, "--workdir", workdir]


def first_step(words: Sequence[str], environment: Mapping[str, str], checkout: pathlib.Path = ROOT) -> Start:
    """Starts a command in a checkout of this project and ends it when it says that its first step is done.

    Raises:
      UserError: it ends before that; its last line is in the message.
    """
    environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
    start, line = time.perf_counter(), ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=checkout, env=environment)
    with subprocess.Popen(words, **options) as process:
        try:
            for line in process.stdout:
                if FIRST in line:
                    break
            else:
                raise UserError(f"{' '.join(words)}: ended before its first step: {line.strip()}")
            wall = time.perf_counter() - start
        finally:
            process.kill()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Start(wall, used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime)


def measure(config: str = "configs/quickstart.py", *, against: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """Prints a line for cold and one for warm starts, and returns them with the seconds of every start.

    Beside another checkout, `against`, a row has its starts too, and how many times as fast ours is by the clock.
    """
    sides = {"starts": ROOT} | ({"against": against} if against else {})
    rows: dict[str, dict[str, Any]] = {kind: dict(row=kind, **{side: [] for side in sides}) for kind in TARGETS}
    data = {"PRISMER_DATA_DIR": str(storage.data_folder())}
    for number, (side, checkout) in itertools.product(range(-1, STARTS), sides.items()):
        with tempfile.TemporaryDirectory(prefix="prismer_jax.bench.") as folder:
            fresh = data | {"PRISMER_CACHE_DIR": f"{folder}/cache", "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
            fresh["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"  # as runtime.use_compilation_cache has it
            for kind in TARGETS if number >= 0 else ("cold",):
                start = first_step(command(config, f"{folder}/{kind}"), fresh, checkout)
                if number >= 0:
                    rows[kind][side].append(start)
    last = f"{'against':>9}{'ratio':>7}" if against else f"{'target':>8}"
    print(f"{'first step of ' + config:<36}{'seconds':>9}{'of cores':>10}{last}")
    for kind, row in rows.items():
        wall, processor = (statistics.median(values) for values in zip(*row["starts"], strict=True))
        row |= dict(target=TARGETS[kind], seconds=wall, processor=processor)
        last = f"{TARGETS[kind]:>8.1f}"
        if against:
            theirs = statistics.median(start.wall for start in row["against"])
            row["ratio"] = theirs / wall
            last = f"{theirs:>9.1f}{row['ratio']:>7.2f}"
        print(f"{kind:<36}{wall:>9.1f}{processor:>10.1f}{last}", flush=True)
    return list(rows.values())
