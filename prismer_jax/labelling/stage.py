"""The stage of a labelling job in which one expert looks at all photos: a shard after the other, in whole batches."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from prismer_jax import label_png, labels
from prismer_jax.errors import BadSample
from prismer_jax.experts.expert import Expert, Label
from prismer_jax.files import progress
from prismer_jax.files.leases import LeaseLost
from prismer_jax.files.work import Item
from prismer_jax.labelling import pipeline
from prismer_jax.labelling.job import Job, ready_shards
from prismer_jax.labelling.label_stores import Writer
from prismer_jax.labelling.ledger import Shard
from prismer_jax.labelling.pipeline import Photo


@dataclasses.dataclass
class _Held:
    """A shard that this process is at, and how far it is."""

    item: Item
    shard: Shard
    writer: Writer
    left: int
    made: int = 0
    problems: list[tuple[int, str, str, str]] = dataclasses.field(default_factory=list)  # index, name, reason, text


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A photo of a shard, by its number in the source."""

    held: _Held
    index: int


class Labelling:
    """The stage of one expert."""

    def __init__(
        self,
        job: Job,
        expert: Expert,
        load: Callable[[], Any],
        mesh: Mesh,
        *,
        batch_size: int = 4,
        threads: int = pipeline.THREADS,
        after: Sequence[str] = (),
    ) -> None:
        """Args:
        load: gives the expert's weights; called when there is something to do.
        mesh: of this process's devices.
        after: stages that a shard must be through.
        """
        self.name = expert.name
        self._job, self._expert, self._load, self._mesh = job, expert, load, mesh
        self._batch_size, self._threads, self._after = batch_size, threads, tuple(after)
        self._work = job.work(self.name)
        self._held: dict[int, _Held] = {}

    def done(self) -> bool:
        return len(self._work.done()) == len(self._work)

    def work(self) -> bool:
        ready = ready_shards(self._job, self._work, self._after)
        if not ready:
            return False
        self._left = {index: len(self._job.shards[index]) for index in ready}
        self._began, self._warm, self._took = time.monotonic(), False, False
        busy, labelled, there = pipeline.Busy(), 0, 0
        results = pipeline.run(
            self._expert,
            self._load,
            self._items(ready),
            self._read,
            lambda item, photo, label: item.held.writer.write(photo, label),
            self._needed,
            mesh=self._mesh,
            batch_size=self._batch_size,
            threads=self._threads,
            busy=busy,
        )
        began = self._began
        try:
            with progress.bar(self.name, sum(self._left.values())) as advance, contextlib.closing(results):
                for result in results:
                    held = result.item.held
                    labelled += self._count(held, result)
                    there += result.photo is None and result.problem is None
                    advance()
                    if not held.left:
                        self._finish(held)
                        advance(self._others())
        finally:
            for held in list(self._held.values()):
                self._leave(held)
        if labelled:
            speed = labelled / (time.monotonic() - began)
            print(
                f"{self.name}: {labelled} labels made, {there} were there; {speed:.3g} a second, compilation included; "
                f"the device was busy {busy.share():.0%} of the time"
            )
        elif there:
            print(f"{self.name}: {there} labels were there, nothing to do")
        return self._took

    def _items(self, ready: Sequence[int]) -> Iterator[_Entry | pipeline.Border]:
        """The photos of one free shard after the other; leases are taken when the threads want more photos."""
        for item in self._work.free(ready):
            self._took, shard = True, self._job.shards[item.index]
            held = _Held(item, shard, self._job.open(self.name, shard), len(shard))
            self._held[shard.index] = held
            for index in range(shard.start, shard.stop):
                yield _Entry(held, index)
            yield pipeline.BORDER

    def _read(self, item: _Entry) -> Photo | None:
        writer = item.held.writer
        if self._job.known(writer, item.index):
            return None
        photo = self._job.photo(item.index)
        return None if writer.has(photo) or self._job.given(self.name, photo) else photo

    def _needed(self, item: _Entry, photo: Photo, size: tuple[int, int]) -> dict[str, Label]:
        needed = {}
        for name in self._expert.needs:
            files = self._job.store.read(name, item.held.shard, photo)
            png = files[".png"] if files else photo.labels.get(f"labels/{name}")
            if png is None:
                raise BadSample(
                    f"{photo.name}: has no label of {name}, which {self.name} needs.", f"no label of {name}"
                )
            png = pathlib.Path(png).read_bytes() if isinstance(png, str) else png
            map = label_png.decode(name, png, f"the label of {name} of {photo.name}")
            needed[name] = Label(labels.blank(name, *size) if map is None else map)
        return needed

    def _count(self, held: _Held, result: pipeline.Result[_Entry]) -> int:
        """Notes a result in its shard; returns whether a label was made."""
        held.left -= 1
        if result.problem is None:
            held.made += result.photo is not None
            return result.photo is not None
        problem = str(result.problem)
        self._job.skip(problem)
        name = result.photo.name if result.photo is not None else self._job.name(result.item.index) or problem
        held.problems.append((result.item.index, name, result.problem.reason, problem))
        if self._job.empty and result.photo is not None:
            held.writer.write(result.photo, None)
        return 0

    def _finish(self, held: _Held) -> None:
        """Publishes a shard and marks it, unless another process has taken it over."""
        now = time.monotonic()
        report = {"made": held.made, "seconds": now - self._began, "cold": not self._warm}
        if held.made:  # the next shard's time begins here
            self._began, self._warm = now, True
        try:
            self._job.ledger.check()
            held.writer.publish(held.item.check)
            self._job.finish(held.item, self.name, report | {"problems": sorted(held.problems)})
        except LeaseLost as error:
            print(f"warning: {error}", file=sys.stderr)
        finally:
            self._leave(held)

    def _leave(self, held: _Held) -> None:
        held.writer.close()
        held.item.release()
        del self._held[held.shard.index]
        if not held.left:
            self._left.pop(held.shard.index, None)

    def _others(self) -> int:
        """How many photos other processes have done since the last look."""
        return sum(self._left.pop(index, 0) for index in self._work.done())
