"""Builds a data set: a plan says what the shards are, processes make those that are missing, the last one finishes.

Any number of processes on any number of hosts may build one folder at once (leases keep them from doing the same), and
any may die at any time: what is whole stays, the rest is made at the next start. Apache Beam runs the same function on
each shard, see build_beam.py.

TFDS gives the records' bytes and the metadata. Its own builders write all shards or none: a build of days could not be
resumed, nor shared by hosts without a cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from prismer_jax import label_files
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import folders, progress, storage, versions, workers
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.leases import Leases
from prismer_jax.files.work import Item, Report, Work, change
from prismer_jax.shards import ingest, manifest, metadata, records, schema
from prismer_jax.shards.writer import take, write_shard

LEASES = ".leases"
POLL = 0.5  # seconds between two looks at the work of others
SAMPLES = 64  # of a source: enough to tell it from another, and for an estimate of sizes


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a data set is a function of.

    Attributes:
      folder: where it lies, local or remote.
      name, split: as TFDS will know it.
      experts: whose labels are stored.
      count: samples of the source.
      shard_size: samples a shard; the last one has the rest.
      max_side: of photos, in pixels; None leaves all as they are.
      made_from: what the source is, for the manifest, as plain JSON.
      labels: expert -> how its labels were made, as plain JSON.
    """

    folder: str
    name: str
    split: str
    experts: tuple[str, ...]
    count: int
    shard_size: int
    max_side: int | None
    made_from: dict[str, Any]
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def file(self, shard: int) -> str:
        return metadata.shard_name(self.name, self.split, shard, self.shards)

    def samples(self, shard: int) -> range:
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def work(self, leases: Leases | None = None, prefix: str = "") -> Work:
        """Returns the shards as work that processes share; the mark of a shard is its row."""
        names = [self.file(shard) for shard in range(self.shards)]

        def whole(shard: int, report: Report | None) -> bool:
            return metadata.whole(self.folder, names[shard], report) is not None

        return Work(self.folder, names, leases, prefix=prefix, counts=whole)

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that are to be made."""
        return sorted(set(range(self.shards)) - self.work().done())


def _some(source: Any) -> Iterator[dict[str, Any] | BadSample]:
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLES).astype(int)):
        yield from take(source, int(index), int(index) + 1)


def names(source: Any) -> str:
    """Returns a hash of the names of a source's photos, or of some ids where only reading a photo tells its name."""
    if not hasattr(source, "name"):
        ids = [None if isinstance(example, BadSample) else example["id"] for example in _some(source)]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.name(index)}\n".encode())
    return digest.hexdigest()[:16]


def label_files_of(source: Any, folder: str | None) -> str | None:
    """Returns a hash of some label files' sizes, if they lie in a folder, by which labels that were made since tell."""
    if folder is None:
        return None
    return versions.digest(example for example in _some(source) if not isinstance(example, BadSample))


def labels_of(source: Any, folder: str | None) -> dict[str, Any]:
    """Returns the experts whose labels a source has, in a folder of label files or in its records: {name: how made}."""
    if folder is not None:
        return label_files.given(folder)
    if isinstance(source, records.Source) and source.manifest is not None:
        return {name: source.manifest.labels.get(name) for name in source.manifest.experts}
    return {}


@dataclasses.dataclass(frozen=True)
class Sample:
    """What some samples of a source tell: how many were looked at, their mean bytes and seconds, and which are bad."""

    count: int
    bytes: float
    seconds: float
    dropped: Dropped


def measure(source: Any, experts: Sequence[str], max_side: int | None) -> Sample:
    """Prepares some samples, for an estimate."""
    serialize = schema.serializer(tuple(experts))
    dropped, count, total, started = Dropped(), 0, 0, time.monotonic()
    for example in _some(source):
        count += 1
        try:
            record = serialize(schema.encode(**ingest.prepare(example, experts, max_side)))
            total += len(zlib.compress(record, 1))  # about as small as `write_shard` makes it
        except BadSample as error:
            dropped.add_error(error)
    return Sample(count, total / count, (time.monotonic() - started) / count, dropped)


def claimed(folder: str) -> dict[str, Any] | None:
    """Returns what is noted in a folder by `claim`; None if nothing is.

    Raises:
      UserError: the note is damaged.
    """
    path = storage.join(folder, manifest.PLAN)
    try:
        return dict(json.loads(storage.read(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{path}: is damaged. Delete the folder, or only the file to build with these flags.") from None


def claim(plan: Plan) -> None:
    """Notes in the folder what is built there.

    Raises:
      UserError: something else is, or the folder cannot be written.
    """
    try:
        storage.make_folder(plan.folder)
        with _alone(plan, "plan"):
            if claimed(plan.folder) is None:
                storage.write_json(storage.join(plan.folder, manifest.PLAN), _noted(plan))
                return
    except OSError as error:
        raise UserError(f"{plan.folder}: cannot be written ({error.strerror}). Choose another --output.") from None
    check_claim(plan)


def check_claim(plan: Plan) -> None:
    """Raises UserError if another data set than the plan's is noted in its folder; writes nothing."""
    before, now = claimed(plan.folder), _noted(plan)
    if before is None:
        return
    for one in (before, now):
        one.get("made_from", {}).pop("dropped", None)  # a report, which may tell more the second time
        one.update({f"made_from.{key}": value for key, value in one.pop("made_from", {}).items()})
    if difference := change(before, dict.fromkeys(before) | now):
        raise UserError(
            f"{plan.folder}: holds shards of another data set ({difference}). Choose another --output, or delete it."
        )


def _noted(plan: Plan) -> dict[str, Any]:
    """Returns what `claim` notes of a plan: all but the folder, which may be moved."""
    noted = json.loads(json.dumps(dataclasses.asdict(plan)))
    del noted["folder"]
    return noted


def write(plan: Plan, source: Any, item: Item, advance: Callable[[], Any] | None = None) -> None:
    """Makes one shard and marks it as done; arguments and errors as of `write_shard`."""
    samples, file = plan.samples(item.index), plan.file(item.index)
    options = {"experts": plan.experts, "max_side": plan.max_side, "advance": advance, "check": item.check}
    row = write_shard(take(source, samples.start, samples.stop), plan.folder, file, **options)
    item.finish(dataclasses.asdict(row))


def build(plan: Plan, source: Any, processes: int = 1) -> manifest.Manifest:
    """Makes the shards that are missing and, when all are there, the metadata.

    Raises:
      UserError: the folder holds something else or cannot be written, the processes died, or no sample is of use.
    """
    claim(plan)
    missing = plan.missing()
    done = plan.count - sum(len(plan.samples(shard)) for shard in missing)
    bar = progress.bar(f"Writing {plan.folder}", plan.count, unit="records", done=done)
    processes = min(processes, len(missing))
    if processes == 1:
        with bar as advance:
            _make(plan, source, 1, 0, advance)
    elif missing:
        statuses = workers.run(functools.partial(_make, plan, source, processes), processes, bar)
        if statuses and plan.missing():
            raise UserError(
                f"{plan.folder}: worker processes died (exit status {', '.join(map(str, sorted(statuses)))}), out of "
                "memory perhaps. Run it again, with fewer --processes; what is whole is kept."
            )
    return finish(plan)


def _make(plan: Plan, source: Any, processes: int, number: int, advance: Callable[[], None]) -> None:
    """Makes missing shards until there are none."""
    leases = None if storage.is_remote(plan.folder) else _leases(plan)  # object stores have none
    for item in plan.work(leases).share(number, processes, POLL):
        with item:
            write(plan, source, item, advance)


def finish(plan: Plan) -> manifest.Manifest:
    """Writes the metadata of whole shards, and removes what killed processes have left.

    Raises:
      UserError: a shard is missing.
    """
    reports = plan.work().reports()
    if len(reports) < plan.shards:
        missing = plan.shards - len(reports)
        raise UserError(f"{plan.folder}: {missing} of {plan.shards} shards are missing. Run it again.")
    with _alone(plan, "finish"):
        finished = metadata.finish(
            plan.folder,
            name=plan.name,
            split=plan.split,
            experts=plan.experts,
            rows=[manifest.parse_row(report) for report in reports.values()],
            made_from=plan.made_from,
            labels=plan.labels,
        )
        if not storage.is_remote(plan.folder):
            folders.sweep(plan.folder)
    return finished


def _alone(plan: Plan, name: str) -> contextlib.AbstractContextManager[Any]:
    """Keeps other processes from doing the same; object stores have no leases, but replace whole files anyway."""
    return contextlib.nullcontext() if storage.is_remote(plan.folder) else _leases(plan).wait(name, POLL)


def _leases(plan: Plan) -> Leases:
    return Leases(os.path.join(plan.folder, LEASES))
