"""The same shards by a runner of Apache Beam: one element a shard, so that any runner may try it again, or twice.

Workers open the source themselves, so its files and the output must lie where all of them reach: a shared disk, or
remote paths. Needs the extra `beam`: pip install prismer_jax[beam].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.shards import build as builder
from prismer_jax.shards import manifest

_sources: dict[str, Any] = {}  # of this worker, by the folder that they are for: opening one can take a minute


def build(plan: builder.Plan, open_source: Callable[[], Any], flags: Sequence[str]) -> manifest.Manifest:
    """Makes the shards that are missing with a Beam pipeline, waits for its end and writes the metadata.

    Args:
      plan: the data set.
      open_source: opens the source in a worker; is pickled.
      flags: Beam's: --runner and what that runner takes.

    Raises:
      UserError: Beam is not installed, the folder holds something else or cannot be written, the pipeline failed, or no
        sample is of use.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--beam needs Apache Beam ({error}): pip install prismer_jax[beam]") from None
    builder.claim(plan)
    if missing := plan.missing():
        pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
        shards = pipeline | "Shards" >> beam.Create(missing) | "Spread" >> beam.Reshuffle()
        _ = shards | "Write" >> beam.Map(functools.partial(write, plan, open_source))
        pipeline.run().wait_until_finish()
    return builder.finish(plan)


def write(plan: builder.Plan, open_source: Callable[[], Any], shard: int) -> int:
    """Makes one shard, unless it is whole: what a worker does. Returns its number."""
    for item in plan.work().free([shard]):
        if plan.folder not in _sources:
            _sources[plan.folder] = open_source()
        builder.write(plan, _sources[plan.folder], item)
    return shard
