"""Work that processes share: each item is made once, by whichever process takes it, and whoever dies.

    work = Work("set", ["a", "b"], Leases("set/.leases"))
    for item in work.share():  # until all are done, by this process or another
        with item:
            row = make(item.index, check=item.check)  # raises LeaseLost where another process took over
            item.finish(row)

An item is done when its mark is there, the file FOLDER/<name>.json with a report of how it went: a kill costs the items
that were being made, and the next start makes these. A lease only keeps others from making the same at the same time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prismer_jax.files import storage
from prismer_jax.files.leases import BEATS, POLL, Lease, LeaseLost, Leases

Report = dict[str, Any]


class Item:
    """One item, taken by this process until `release` or the end of the `with` block."""

    def __init__(self, work: Work, index: int, lease: Lease | None) -> None:
        self.index = index
        self._work, self._lease = work, lease

    def check(self) -> None:
        """Raises LeaseLost where another process took over; to be called right before the result is published."""
        if self._lease is not None:
            self._lease.check()

    def finish(self, report: Mapping[str, Any]) -> None:
        """Marks the item as done; raises as `check`."""
        self.check()
        self._work.mark(self.index, report)

    def release(self) -> None:
        """Gives the item back, done or not."""
        if self._lease is not None:
            self._lease.release()

    def __enter__(self) -> Item:
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        self.release()
        if kind is not None and issubclass(kind, LeaseLost):  # the other process makes this one
            print(f"warning: {error}", file=sys.stderr)
            return True
        return False


class Work:
    """Items 0, 1, ... in a folder, and which of them are done. Each process has one of its own."""

    def __init__(
        self,
        folder: str,
        names: Sequence[str],
        leases: Leases | None,
        *,
        prefix: str = "",
        counts: Callable[[int, Report | None], bool] = lambda index, report: report is not None,
    ) -> None:
        """Args:
        folder: of the marks, local or remote; made with the first mark.
        names: of the items, as file names.
        leases: that all processes share; None for none, where only processes of one host work, by turns.
        prefix: of the leases' names, where `leases` serve several works.
        counts: (number of an item, report of its mark or None) -> whether the item is done; whether its result is still
          there, for instance.
        """
        self.folder, self.leases, self._names, self._prefix, self._counts = folder, leases, names, prefix, counts
        self._done: dict[int, Report] = {}

    def __len__(self) -> int:
        return len(self._names)

    def is_done(self, index: int) -> bool:
        """Returns whether an item is done, by this process or another."""
        return index in self._done or self._look(index, self._read(index))

    def done(self) -> set[int]:
        """Returns the numbers of all items that are done."""
        marks = set(storage.names(self.folder))  # one look at the folder instead of one for each item
        for index in set(range(len(self))) - self._done.keys():
            self._look(index, self._read(index) if f"{self._names[index]}.json" in marks else None)
        return set(self._done)

    def report(self, index: int) -> Report | None:
        """Returns the report of an item; None if the item is not done."""
        return self._done[index] if self.is_done(index) else None

    def reports(self) -> dict[int, Report]:
        """Returns the reports of all items that are done, by their numbers, lowest first."""
        return {index: self._done[index] for index in sorted(self.done())}

    def mark(self, index: int, report: Mapping[str, Any]) -> None:
        """Marks an item as done, with a report that is plain JSON."""
        storage.make_folder(self.folder)
        storage.write_json(self._path(index), report, indent=None)

    def free(self, among: Iterable[int] | None = None) -> Iterator[Item]:
        """Yields items, of all or of those numbers, that are neither done nor held by a living process."""
        for index in range(len(self)) if among is None else among:
            if self.is_done(index):
                continue
            lease = None
            if self.leases is not None and (lease := self.leases.take(self._prefix + self._names[index])) is None:
                continue
            item = Item(self, index, lease)
            if self.is_done(index):  # another process has just finished and released it
                item.release()
            else:
                yield item

    def share(self, worker: int = 0, workers: int = 1, poll: float = POLL) -> Iterator[Item]:
        """Yields items until all are done; waits for what other processes hold, and takes over from the dead.

        An item must have been released, done or given up by an error, when the next one is asked for.

        Args:
          worker, workers: without leases, the number of this process and how many there are, which take turns.
          poll: seconds between two looks at what others hold.
        """
        left = [index for index in range(len(self)) if self.leases is not None or index % workers == worker]
        while left := [index for index in left if not self.is_done(index)]:
            took = False
            for item in self.free(left):
                took = True
                yield item
            if not took and self.leases is not None:
                time.sleep(min(poll, self.leases.expiry / BEATS))

    def _look(self, index: int, report: Report | None) -> bool:
        """Whether an item with this report is done; once it is, it stays so for this process."""
        if self._counts(index, report):
            self._done[index] = report or {}
        return index in self._done

    def _path(self, index: int) -> str:
        return storage.join(self.folder, f"{self._names[index]}.json")

    def _read(self, index: int) -> Report | None:
        """The report of an item's mark; None if it is not there, or not written by `mark`."""
        try:
            report = json.loads(storage.read(self._path(index)))
        except (FileNotFoundError, ValueError):
            return None
        return report if isinstance(report, dict) else None


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Says in what the settings of a job differ from those that its folder was begun with; None if they do not."""
    for key, value in now.items():
        if before.get(key) != value:
            return f"{key} was {json.dumps(before.get(key))[:300]}, now it is {json.dumps(value)[:300]}"
    return None
