"""The state of a labelling job, as files that its processes share: who is there, and which shards each stage has done.

    ledger = Ledger(output / ".make_labels", {"photos": 1000, "shard_size": 256})
    work = ledger.work("depth", 4)  # see prismer_jax/files/work.py

    FOLDER/job.json                  what the job is at, and how fast its stages were
    FOLDER/done/depth/000012.json    depth is through with shard 12, and how it went
    FOLDER/labels/                   labels on their way into a data set
    FOLDER/leases/                   who works on what, and who is there at all (see prismer_jax/files/leases.py)

Marks outlive the processes. When a process starts where there is none, those of shards in which a photo could not be
labelled count no longer, nor do any where labels are to be looked at again; a job with other settings begins anew.
"""

from __future__ import annotations

import pathlib
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import leases, storage
from prismer_jax.files.leases import Leases
from prismer_jax.files.work import Report, Work, change

START, PROCESS = "start", "process-"
LABELS = "labels"


@dataclass(frozen=True)
class Shard:
    """Photos start..stop of a source: what one process does at a time."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Ledger:
    """The state of one job. To be closed: others go by whether this process is there.

    Attributes:
      start: names the processes of this start, which began when there were none.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        settings: Mapping[str, Any],
        expiry: float = leases.EXPIRY,
        recheck: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Joins the processes that are at this job, or begins it where there are none.

        Args:
          folder: on a file system that all share; made if need be.
          settings: of the job, as plain JSON; processes work together only if they are the same for all.
          expiry: of leases, in seconds.
          recheck: no shard counts as done before it was looked at again; the same for all processes.
          check: called before the labels that a job with other settings has left on their way are deleted; what it
            raises, where this job cannot be, keeps them.

        Raises:
          UserError: living processes are at a job with other settings in this folder.
        """
        self.folder, self.leases = folder, Leases(folder / "leases", expiry)
        self._file, self._marks = folder / "job.json", folder / "done"
        self._settings = settings = {**settings, "recheck": recheck}
        with self.leases.wait(START):
            before = run = storage.read_json(self._file, {})
            difference = change(before.get("settings", {}), settings)
            if self.leases.sweep(PROCESS) and before:
                if difference:
                    raise UserError(
                        f"{folder.parent}: other processes are at work here, with other settings ({difference}). Give "
                        "the same flags, or wait for their end."
                    )
            else:
                run = self._begin(before, settings, check)
            self.leases.take(PROCESS + secrets.token_hex(8))  # for as long as this process is there
        self.start, self._recheck = run["start"], recheck

    def _begin(
        self, before: Mapping[str, Any], settings: Mapping[str, Any], check: Callable[[], None]
    ) -> dict[str, Any]:
        speeds = before.get("speeds", {}) | _speeds(self._marks)
        same = change(before.get("settings", {}) | {"recheck": False}, {**settings, "recheck": False}) is None
        if not same:
            if (self.folder / LABELS).exists():
                check()
            for stale in (self._marks, self.folder / LABELS):
                shutil.rmtree(stale, ignore_errors=True)
        run = {"settings": settings, "speeds": speeds, "start": secrets.token_hex(8)}
        storage.write_json(self._file, run)
        return run

    def check(self) -> None:
        """Raises UserError where a job with other settings has begun here, while this process gave no sign of life.

        To be called before a shard is marked, which would be another one there, and before all marks are believed.
        """
        now = storage.read_json(self._file, {}).get("settings")  # None where a disk is away for a moment
        if now is not None and (difference := change(now, self._settings)):
            raise UserError(
                f"{self.folder.parent}: other processes have begun here with other settings ({difference}), while this "
                "one was stopped for too long. Run it again when they have ended."
            )

    def trusts(self, report: Report) -> bool:
        """Returns whether the mark with this report counts without a look at the shard."""
        return report.get("start") == self.start or not (self._recheck or report.get("problems"))

    def work(self, stage: str, count: int, counts: Callable[[int, Report | None], bool]) -> Work:
        """Returns the shards of a stage as work; `counts` is that of `Work`.

        Reports of shards have the `start` in which they were made, and `problems`, if a photo could not be labelled.
        `made` and `seconds`, of the labels made and the time that took, become the stage's speed; of `cold` shards,
        whose time has compilation in it, only where there are no others.
        """
        names = [f"{shard:06d}" for shard in range(count)]
        return Work(str(self._marks / stage), names, self.leases, prefix=f"{stage}.", counts=counts)

    def close(self) -> None:
        """Leaves the job."""
        self.leases.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def past_speeds(folder: pathlib.Path) -> dict[str, float]:
    """Returns the labels a second of one process by stage, as the jobs in a folder have reached them so far."""
    return storage.read_json(folder / "job.json", {}).get("speeds", {}) | _speeds(folder / "done")


def _speeds(marks: pathlib.Path) -> dict[str, float]:
    totals: dict[tuple[str, bool], tuple[int, float]] = {}
    for path in marks.glob("*/*.json"):
        report = storage.read_json(path, {})
        key = path.parent.name, not report.get("cold")
        count, seconds = totals.get(key, (0, 0.0))
        totals[key] = count + report.get("made", 0), seconds + report.get("seconds", 0.0)
    # Those with compilation in them come first, so that others replace them.
    return {stage: count / seconds for (stage, _), (count, seconds) in sorted(totals.items()) if count and seconds}
