"""The last stage of a labelling job whose output is a data set: a shard that all experts have seen becomes ArrayRecord.

Shards of the data set are those of the job. A shard's labels lie in `LabelShards` until it is written.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prismer_jax import label_files
from prismer_jax.errors import BadSample
from prismer_jax.files import progress
from prismer_jax.files.work import Item, Work
from prismer_jax.labelling import pipeline
from prismer_jax.labelling.job import Job, photo_of, ready_shards
from prismer_jax.labelling.label_stores import LabelShards
from prismer_jax.labelling.ledger import Shard
from prismer_jax.shards import build, schema


class Recording:
    """The stage that writes a data set's shards."""

    name = "records"

    def __init__(self, job: Job, store: LabelShards, plan: build.Plan, work: Work, threads: int) -> None:
        """Args:
        plan: of the data set; its shards are the job's.
        work: of the plan.
        threads: for so many shards at a time.
        """
        self._job, self._store, self._plan, self._work = job, store, plan, work
        self._threads = threads

    def done(self) -> bool:
        return len(self._work.done()) == len(self._work)

    def work(self) -> bool:
        ready = ready_shards(self._job, self._work, tuple(self._job.kinds))
        if not ready:
            return False
        schema.serializer(self._plan.experts)  # imports TFDS, which locks up if several threads do so at once
        left, took = {index: len(self._job.shards[index]) for index in ready}, False
        with progress.bar(self.name, sum(left.values())) as advance, ThreadPoolExecutor(self._threads) as pool:
            for _ in pipeline.ahead(pool, self._write, self._work.free(ready), self._threads):
                took = True
                advance(sum(left.pop(index, 0) for index in self._work.done()))
        return took

    def _write(self, item: Item) -> None:
        shard = self._job.shards[item.index]
        with item:
            build.write(self._plan, _Labelled(self._job, self._store, shard), item)
            for kinds in self._job.kinds.values():
                for kind in kinds:
                    self._store.remove(kind, shard)


class _Labelled:
    """The photos of a shard with their labels: `source[i]` by the number in the whole source."""

    def __init__(self, job: Job, store: LabelShards, shard: Shard) -> None:
        self._job, self._store, self._shard = job, store, shard
        self._problems: dict[int, tuple[str, str]] = {}
        for expert in job.kinds if not job.empty else ():
            for index, _, reason, problem in (job.work(expert).report(shard.index) or {}).get("problems", ()):
                self._problems.setdefault(index, (reason, problem))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises BadSample also for a photo that an expert could not label, unless such get the empty label."""
        if index in self._problems:
            reason, problem = self._problems[index]
            raise BadSample(problem, reason)
        example = self._job.source[index]
        photo = photo_of(example)
        for kind in (kind for kinds in self._job.kinds.values() for kind in kinds):
            if files := self._store.read(kind, self._shard, photo):
                example |= label_files.parse(kind, files, photo.name)
        return example
