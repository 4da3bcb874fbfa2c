"""How many records of a data set one core writes: photos with seven label maps into a shard. A part of tools.bench.

The photos are rendered scenes of 480 pixels, which are in memory, encoded, before the clock starts. What is counted is
the processor's time, of all threads; the fastest of at least three rounds counts. The official code builds no data set.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

from prismer_jax import labels
from prismer_jax.datasets import scenes
from prismer_jax.shards import metadata, writer

PHOTOS, SIZE = 64, 480


def measure(*, seconds: float = 10) -> list[dict[str, Any]]:
    """Prints a line, and returns it with the seconds of every round."""
    source = scenes.load(task="all", size=SIZE, count=PHOTOS)
    examples = [example for example in writer.take(source, 0, len(source)) if isinstance(example, dict)]
    rounds: list[float] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prismer_jax.bench.") as folder:
        while len(rounds) < 3 or time.monotonic() - begun < seconds:
            shard = pathlib.Path(folder, str(len(rounds)))
            shard.mkdir()
            start = time.process_time()
            writer.write_shard(examples, str(shard), metadata.shard_name("bench", "train", 0, 1), experts=labels.PAPER)
            rounds.append(time.process_time() - start)
    rate = len(examples) / min(rounds)
    print(f"{'records written a second of one core':<54}{rate:>9.1f}", flush=True)
    return [dict(row="build", a_second=[rate], seconds=[rounds])]
