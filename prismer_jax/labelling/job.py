"""One labelling job: an expert after another over a source's shards, shared with whatever other processes are at it.

    with Ledger(folder / ".make_labels", settings(source, 256)) as ledger:
        job = Job(source, LabelFiles(folder), ledger, split(len(source), 256), {"depth": "trained weights"})
        finish([Labelling(job, expert, load, mesh) for expert in experts])

A process takes whatever shards are free of one expert, then of the next, so that one expert is on its device at a time;
then it comes back for what others have left. It returns when every photo is labelled, by this process or another.
"""

from __future__ import annotations

import bisect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from prismer_jax import labels
from prismer_jax.datasets import label_names
from prismer_jax.errors import BadSample
from prismer_jax.files import leases
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.work import Item, Report, Work
from prismer_jax.labelling.label_stores import Store, Writer, Writers
from prismer_jax.labelling.ledger import Ledger, Shard
from prismer_jax.labelling.pipeline import Photo
from prismer_jax.shards import build

SAID = 20  # lines about photos that cannot be labelled; the rest is only in the report


class Stage(Protocol):
    """Something that is done to every shard."""

    name: str

    def work(self) -> bool:
        """Does what is free; returns whether anything was. Waits for nobody."""

    def done(self) -> bool:
        """Returns whether every shard is labelled, by this process or another."""


def finish(stages: Sequence[Stage], poll: float = leases.POLL) -> None:
    """Returns when all stages are done; waits for what other processes are at, and takes over from the dead."""
    while not all(stage.done() for stage in stages):
        if not any([stage.work() for stage in stages]):
            time.sleep(poll)


def split(count: int, size: int) -> list[Shard]:
    """Returns shards of `size` photos each, the last one of what is left."""
    return [Shard(i, start, min(start + size, count)) for i, start in enumerate(range(0, count, size))]


class Job:
    """What all stages work on: photos, their labels, and what is known of both.

    Attributes:
      source: of the task 'all', see datasets/lists/.
      shards: of it.
      kinds: {expert: of labels that it makes}.
    """

    def __init__(
        self,
        source: Any,
        store: Store,
        ledger: Ledger | None,
        shards: Sequence[Shard],
        made_with: Mapping[str, str],
        *,
        distinct: bool = True,
        keep: bool = False,
        empty: bool = False,
        settled: Callable[[Shard], bool] = lambda shard: False,
        kinds: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Args:
        ledger: None to look only: no stage can then work.
        made_with: kind -> how its labels are made; marks of shards that were labelled otherwise do not count.
        distinct: no two photos have label files of one name. If that is not known, the second is an error.
        keep: labels that the source itself has are taken as there.
        empty: photos that an expert cannot label get the empty label; they are reported all the same.
        settled: whether nothing is to do in a shard any more, marked or not.
        kinds: {expert: of labels that it makes}, by default one each, called as the expert.
        """
        self.kinds = {name: tuple(made) for name, made in (kinds or {name: (name,) for name in made_with}).items()}
        self.source, self.store, self.ledger, self.shards = source, store, ledger, tuple(shards)
        self._keep, self.empty, self.settled = keep, empty, settled
        self._twins = {} if distinct else self._find_twins()
        self._made_with, self._works = dict(made_with), {}
        self._said: set[str] = set()

    def work(self, expert: str) -> Work:
        """Returns the shards as work of an expert."""
        if expert not in self._works:

            def counts(index: int, report: Report | None) -> bool:
                shard = self.shards[index]
                if self.settled(shard) or report is None:
                    return self.settled(shard)
                same = report.get("made_with") == self._how(expert) and self.ledger.trusts(report)
                return same and all(self.store.is_whole(kind, shard) for kind in self.kinds_of(expert))

            self._works[expert] = self.ledger.work(expert, len(self.shards), counts)
        return self._works[expert]

    def finish(self, item: Item, expert: str, report: Report) -> None:
        """Marks a shard as done by an expert; raises LeaseLost."""
        item.finish({**report, "made_with": self._how(expert), "start": self.ledger.start})

    def kinds_of(self, expert: str) -> tuple[str, ...]:
        """Returns the kinds of labels that an expert makes."""
        return self.kinds.get(expert, (expert,))

    def _how(self, expert: str) -> str | None:
        """Returns how an expert's labels are made, and, of one that makes others than its own, which."""
        kinds = self.kinds_of(expert)
        how = self._made_with.get(kinds[0])
        return how if kinds == (expert,) else f"{how}: {', '.join(kinds)}"

    def open(self, expert: str, shard: Shard) -> Writer:
        """Returns what takes an expert's labels of a shard: {kind: label} of one that makes others than its own."""
        kinds = self.kinds_of(expert)
        if kinds == (expert,):
            return self.store.open(expert, shard)
        return Writers({kind: self.store.open(kind, shard) for kind in kinds})

    def name(self, index: int) -> str | None:
        """Returns what a photo's label files are called, if the source can tell without reading it."""
        return self.source.name(index) if hasattr(self.source, "name") else None

    def photo(self, index: int) -> Photo:
        """Returns photo number `index` of the source; raises BadSample."""
        photo = photo_of(self.source[index])
        if index in self._twins:
            earlier = self._twins[index]
            owner = self._stored_name(earlier)
            if owner == photo.name:  # which says nothing
                owner = _called(photo_of(self.source[earlier]))
            raise BadSample(
                f"{_called(photo)}: its label files would be those of {owner}. {label_names.REMEDY}",
                label_names.USED_TWICE,
            )
        return photo

    def _stored_name(self, index: int) -> str:
        """Returns what a photo's label files are called; reads the photo where the source cannot tell without."""
        if (name := self.name(index)) is not None:
            return name
        try:
            return photo_of(self.source[index]).name
        except BadSample:
            return f"\0{index}"  # no file is called so: it has no labels

    def _find_twins(self) -> dict[int, int]:
        """{number of a photo whose label files would be those of another one before it: the number of that}."""
        any_case = label_names.ignores_case(getattr(self.store, "folder", ""))

        def key(index: int) -> str:
            return label_names.key(self._stored_name(index), any_case)

        count = len(self.source)
        hashes = np.fromiter((hash(key(index)) for index in range(count)), np.int64, count)  # of millions, in 8 bytes
        _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
        pairs = ((int(index), int(first[group[index]])) for index in np.flatnonzero(first[group] != np.arange(count)))
        return {later: earlier for later, earlier in pairs if key(later) == key(earlier)}

    def has(self, expert: str, index: int) -> bool:
        """Returns whether a photo has its label by an expert."""
        try:
            photo = self.photo(index)
        except BadSample:
            return False
        return f"labels/{expert}" in photo.labels or self.store.read(expert, self.shard_of(index), photo) is not None

    def known(self, writer: Writer, index: int) -> bool:
        """Returns whether a photo's label is there, as far as its name tells without reading the photo."""
        name = None if index in self._twins else self.name(index)
        return name is not None and writer.has(Photo(name, ""))

    def given(self, expert: str, photo: Photo) -> bool:
        """Returns whether the source itself has a photo's labels by an expert, and that counts."""
        return self._keep and all(f"labels/{kind}" in photo.labels for kind in self.kinds_of(expert))

    def shard_of(self, index: int) -> Shard:
        """Returns the shard that a photo is in."""
        return self.shards[bisect.bisect_right(self.shards, index, key=lambda shard: shard.stop)]

    def skip(self, problem: str) -> None:
        """Says of a photo that it cannot be labelled, once."""
        if problem not in self._said and len(self._said) <= SAID:  # of millions of photos many may have one
            self._said.add(problem)
            if len(self._said) <= SAID:
                print(f"skipped: {problem}", file=sys.stderr)
            else:
                print("skipped: more of them, to be listed at the end", file=sys.stderr)

    def skipped(self, experts: Sequence[str]) -> tuple[Dropped, list[dict[str, Any]]]:
        """Returns what no process could label: counts by reason, and a row a photo and problem with its experts."""
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for expert in experts:
            for report in self.work(expert).reports().values():
                for index, image, reason, problem in report.get("problems", ()):
                    row = {"image": image, "experts": [], "reason": reason, "problem": problem}
                    found.setdefault((index, problem), row)["experts"].append(expert)
        rows = [found[key] for key in sorted(found)]
        counts = Dropped()
        for row in rows:
            counts.add(row["reason"], row["problem"])
        return counts, rows


def _called(photo: Photo) -> str:
    return photo.source if isinstance(photo.source, str) else photo.id or photo.name


def photo_of(example: Mapping[str, Any]) -> Photo:
    """Returns the photo of an example of the task 'all'."""
    given = {key: example[key] for name in labels.EXPERTS if (key := f"labels/{name}") in example}
    id = str(example["id"])
    return Photo(example.get("name") or id, example["image"], id, given)


def ready_shards(job: Job, work: Work, after: Sequence[str]) -> list[int]:
    """Returns the numbers of the shards that are not through a stage's work, but through the experts before it."""
    return sorted(set(range(len(work))).intersection(*(job.work(name).done() for name in after)) - work.done())


def settings(source: Any, shard_size: int) -> dict[str, Any]:
    """Returns what a job's marks are valid for: how many photos there are, their names, and how they are split."""
    return {"photos": len(source), "shard_size": shard_size, "names": build.names(source)}
