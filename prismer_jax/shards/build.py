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
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from prismer_jax import label_files
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import progress, storage, workers
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.leases import LeaseLost, Leases
from prismer_jax.shards import ingest, manifest, records
from prismer_jax.shards.writer import take, write_shard

PLAN = "plan.json"
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
        return manifest.shard_name(self.name, self.split, shard, self.shards)

    def samples(self, shard: int) -> range:
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def whole(self, shard: int) -> bool:
        return manifest.whole(self.folder, self.file(shard)) is not None

    def missing(self) -> list[int]:
        return [shard for shard in range(self.shards) if not self.whole(shard)]


def _some(source: Any) -> Iterator[dict[str, Any] | BadSample]:
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLES).astype(int)):
        yield from take(source, int(index), int(index) + 1)


def digest(source: Any) -> str:
    """Tells a source from another of the same length: a hash of some of its ids."""
    ids = [None if isinstance(example, BadSample) else example["id"] for example in _some(source)]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def labels_of(source: Any, folder: str | None) -> dict[str, Any]:
    """The experts whose labels a source has, in a folder of label files or in its records: {name: how made}."""
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
    serialize = records.serializer(tuple(experts))
    dropped, count, total, started = Dropped(), 0, 0, time.monotonic()
    for example in _some(source):
        count += 1
        try:
            total += len(serialize(records.encode(**ingest.prepare(example, experts, max_side))))
        except BadSample as error:
            dropped.add_error(error)
    return Sample(count, total / count, (time.monotonic() - started) / count, dropped)


def claimed(folder: str) -> dict[str, Any] | None:
    """What is noted in a folder by `claim`; None if nothing is.

    Raises:
      UserError: the note is damaged.
    """
    path = storage.join(folder, PLAN)
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
    wanted = json.loads(json.dumps(dataclasses.asdict(plan)))
    del wanted["folder"]  # it may be moved
    try:
        storage.make_folder(plan.folder)
        with _alone(plan, "plan"):
            found = claimed(plan.folder)
            if found is None:
                storage.write_json(storage.join(plan.folder, PLAN), wanted)
                return
    except OSError as error:
        raise UserError(f"{plan.folder}: cannot be written ({error.strerror}). Choose another --output.") from None
    for one in (found, wanted):
        one.get("made_from", {}).pop("dropped", None)  # a report, which may tell more the second time
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{plan.folder}: holds shards of another data set ({key} was {_said(found.get(key))}, now it is "
                f"{_said(value)}). Choose another --output, or delete it."
            )


def _said(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 300 else f"{text[:300]}..."


def write(plan: Plan, source: Any, shard: int, **options: Any) -> manifest.Row:
    """Makes one shard; options as of `write_shard`."""
    samples = plan.samples(shard)
    examples = take(source, samples.start, samples.stop)
    return write_shard(examples, plan.folder, plan.file(shard), experts=plan.experts, max_side=plan.max_side, **options)


def build(plan: Plan, source: Any, processes: int = 1) -> manifest.Manifest:
    """Makes the shards that are missing and, when all are there, the metadata.

    Raises:
      UserError: the folder holds something else or cannot be written, the processes died, or no sample is of use.
    """
    claim(plan)
    missing = plan.missing()
    if missing and processes == 1:
        with _bar(plan, missing) as advance:
            _work(plan, source, advance)
    elif missing:
        _work_in_processes(plan, source, min(processes, len(missing)), missing)
    return finish(plan)


def _bar(plan: Plan, missing: Sequence[int]) -> contextlib.AbstractContextManager[Callable[..., None]]:
    done = plan.count - sum(len(plan.samples(shard)) for shard in missing)
    return progress.bar(f"Writing {plan.folder}", plan.count, unit="records", done=done)


def finish(plan: Plan) -> manifest.Manifest:
    """Writes the metadata of whole shards, and removes what killed processes have left.

    Raises:
      UserError: a shard is missing.
    """
    rows = [manifest.whole(plan.folder, plan.file(shard)) for shard in range(plan.shards)]
    if None in rows:
        raise UserError(f"{plan.folder}: {rows.count(None)} of {plan.shards} shards are missing. Run it again.")
    with _alone(plan, "finish"):
        finished = manifest.finish(
            plan.folder,
            name=plan.name,
            split=plan.split,
            experts=plan.experts,
            rows=rows,
            made_from=plan.made_from,
            labels=plan.labels,
        )
        if not storage.is_remote(plan.folder):
            storage.sweep(plan.folder)
    return finished


def _alone(plan: Plan, name: str) -> contextlib.AbstractContextManager[Any]:
    """Keeps other processes from doing the same; object stores have no leases, but replace whole files anyway."""
    return contextlib.nullcontext() if storage.is_remote(plan.folder) else _leases(plan).wait(name, POLL)


def _leases(plan: Plan) -> Leases:
    return Leases(os.path.join(plan.folder, LEASES))


def _work(plan: Plan, source: Any, advance: Callable[[], None], worker: int = 0, count: int = 1) -> None:
    """Makes missing shards until there are none."""
    if storage.is_remote(plan.folder):  # object stores have no leases: the workers of this host take turns
        for shard in plan.missing():
            if shard % count == worker:
                write(plan, source, shard, advance=advance)
        return
    names = {plan.file(shard): shard for shard in range(plan.shards)}
    for lease in _leases(plan).share(names, lambda name: plan.whole(names[name]), poll=POLL):
        with lease, contextlib.suppress(LeaseLost):  # then another process makes this one
            write(plan, source, names[lease.name], advance=advance, check=lease.check)


def _work_in_processes(plan: Plan, source: Any, processes: int, missing: Sequence[int]) -> None:
    context = workers.context()
    counter, errors = context.Value("q", 0), context.SimpleQueue()
    started = [
        context.Process(target=_worker, args=(plan, source, counter, errors, number, processes), daemon=True)
        for number in range(processes)
    ]
    for worker in started:
        worker.start()
    try:
        with _bar(plan, missing) as advance:  # after the fork: a bar has a thread and locks
            seen = 0
            while any(worker.is_alive() for worker in started) and errors.empty():
                wait([worker.sentinel for worker in started if worker.is_alive()], timeout=POLL)
                now = counter.value
                advance(now - seen)
                seen = now
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()
    if not errors.empty():
        raise UserError(errors.get())
    if any(worker.exitcode for worker in started) and plan.missing():
        codes = sorted({worker.exitcode for worker in started if worker.exitcode})
        raise UserError(
            f"{plan.folder}: worker processes died (exit status {', '.join(map(str, codes))}), out of memory perhaps. "
            "Run it again, with fewer --processes; what is whole is kept."
        )


def _worker(plan: Plan, source: Any, counter: Any, errors: Any, number: int, count: int) -> None:
    workers.begin()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it puts away what is half-written

    def advance() -> None:
        with counter.get_lock():
            counter.value += 1

    try:
        _work(plan, source, advance, number, count)
    except (UserError, OSError) as error:
        errors.put(str(error))
