"""What a labelling job has still to do, and how long that takes, before it is begun; nothing is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jax.sharding import Mesh

from prismer_jax import label_files, labels
from prismer_jax.errors import BadSample
from prismer_jax.experts.expert import Expert, Label
from prismer_jax.files import progress
from prismer_jax.labelling import pipeline
from prismer_jax.labelling.job import Job
from prismer_jax.labelling.ledger import Shard
from prismer_jax.labelling.pipeline import Photo
from prismer_jax.pp.image_size import image_size

SAMPLE = 200  # photos whose sizes, and whose labels' bytes, stand for all
BATCHES = 2  # that a probe times


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How much work the labels of one expert are.

    Attributes:
      photos: of the source.
      missing: labels that are to be made.
      shapes: of prepared images, among `sampled` photos: each is compiled once.
      bytes: of a label's files, the mean; None if that is not known.
      speed: labels a second of one process; None if that is not known.
      known_by: what the speed was measured on.
    """

    expert: str
    photos: int
    missing: int
    shapes: int
    sampled: int
    bytes: float | None
    speed: float | None
    known_by: str

    @property
    def hours(self) -> float:
        """The hours that one process needs."""
        return self.missing / self.speed / 3600 if self.speed else 0.0

    def line(self) -> str:
        parts = [f"{self.expert}: {self.missing:,} of {self.photos:,} labels to make"]
        if self.missing:
            parts.append(f"{self.shapes} shape{'s'[: self.shapes != 1]} to compile (in {self.sampled} photos)")
        if self.missing and self.bytes is not None:
            parts.append(f"{self.missing * self.bytes / 1e9:.3g} GB")
        if self.missing and self.speed:
            parts.append(f"{self.hours:.2g} hours of one process, {self.speed:.3g} a second by {self.known_by}")
        return ", ".join(parts)


def estimate(
    job: Job,
    expert: Expert,
    load: Callable[[], Any],
    mesh: Mesh,
    *,
    batch_size: int,
    threads: int,
    speeds: Mapping[str, float],
) -> Estimate:
    """Counts what is missing of an expert's labels, and measures how fast they are made.

    Args:
      load: gives the expert's weights; called if the speed is not known.
      speeds: labels a second by expert, of shards that are done.
    """
    missing = _count_missing(job, expert.name, threads)
    sample = _sample(job)
    shapes: set[tuple[int, int]] = set()
    usable, sizes = [], []
    for index, photo in sample.items():
        try:
            shapes.add(expert.shape(*image_size(photo.source, where=photo.name)))
        except BadSample:
            continue
        usable.append(photo)
        label_files = [job.store.read(kind, job.shard_of(index), photo) for kind in expert.kinds]
        if all(label_files):
            sizes.append(sum(len(data) for files in label_files for data in files.values()))
    speed, known_by = speeds.get(expert.name), "shards that are done"
    if missing and usable and speed is None:
        speed, probed = _probe(expert, load, mesh, usable[:batch_size], batch_size, threads)
        known_by = f"a probe of {min(len(usable), batch_size) * BATCHES} photos"
        sizes = sizes or probed
    mean = float(np.mean(sizes)) if sizes else None
    return Estimate(expert.name, len(job.source), missing, len(shapes), len(sample), mean, speed, known_by)


def _count_missing(job: Job, expert: str, threads: int) -> int:
    def missing(shard: Shard) -> int:
        if job.settled(shard):
            return 0
        writer, count = job.open(expert, shard), 0
        for index in range(shard.start, shard.stop):
            if job.known(writer, index):
                continue
            try:
                photo = job.photo(index)
                count += not (writer.has(photo) or job.given(expert, photo))
            except BadSample:  # cannot be labelled at all
                continue
        return count

    total = 0
    with progress.bar(f"counting {expert}", len(job.source)) as advance, ThreadPoolExecutor(threads) as pool:
        for shard, count in zip(job.shards, pool.map(missing, job.shards), strict=True):
            total += count
            advance(len(shard))
    return total


def _sample(job: Job) -> dict[int, Photo]:
    photos = {}
    for index in np.unique(np.linspace(0, len(job.source) - 1, SAMPLE).astype(int)).tolist():
        try:
            photos[index] = job.photo(index)
        except BadSample:
            continue
    return photos


def _probe(
    expert: Expert, load: Callable[[], Any], mesh: Mesh, photos: Sequence[Photo], batch_size: int, threads: int
) -> tuple[float, list[int]]:
    """Labels photos twice, the first time to compile; returns (labels a second, the bytes of each label)."""
    weights, sizes = load(), []

    def write(index: int, photo: Photo, made: Label | Mapping[str, Label]) -> None:
        files = (label_files.files(kind, **vars(label)) for kind, label in expert.by_kind(made).items())
        sizes.append(sum(len(data) for label in files for data in label.values()))

    def needed(index: int, photo: Photo, size: tuple[int, int]) -> dict[str, Label]:
        return {name: Label(labels.blank(name, *size)) for name in expert.needs}

    seconds = 0.0
    for times in (1, BATCHES):
        items = list(range(len(photos))) * times
        started = time.monotonic()
        results = pipeline.run(
            expert,
            lambda: weights,
            items,
            photos.__getitem__,
            write,
            needed,
            mesh=mesh,
            batch_size=batch_size,
            threads=threads,
        )
        made = sum(result.problem is None for result in results)
        seconds = time.monotonic() - started
    return made / seconds, sizes
