"""What all processes of a job know in common, as files: which shards are done and how each went.

    ledger = Ledger(output / ".make_labels", {"photos": 1000, "shard_size": 256})
    for lease, shard in ledger.free("depth", shards):
        ...
        ledger.mark(lease, "depth", shard, {"made": 256, "seconds": 12.5})

    FOLDER/run.json                  what the job is at, and its id
    FOLDER/<id>/depth/000012.json    depth is through with shard 12, and how it went
    FOLDER/leases/                   who works on what, and who is there at all (see prismer_jax/files/leases.py)

Marks count as long as a process of the job lives. One that starts when there is none begins a new job, in which every
shard is looked at again: what somebody deleted or cut off meanwhile is made again, and processes share that work, too.
"""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import leases, storage
from prismer_jax.files.leases import Lease, Leases

START, PROCESS = "start", "process-"


@dataclass(frozen=True)
class Shard:
    """Photos start..stop of a source: what one process does at a time."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Ledger:
    """The marks and leases of one job. To be closed: others go by whether this process is there."""

    def __init__(self, folder: pathlib.Path, work: Mapping[str, Any], expiry: float = leases.EXPIRY) -> None:
        """Joins the processes that are at this work, or begins a job where there are none.

        Args:
          folder: on a file system that all share; made if need be.
          work: what the job is at, as plain JSON; processes work together only if it is the same for all.
          expiry: of leases.

        Raises:
          UserError: living processes are at other work in this folder.
        """
        self.folder, self.leases = folder, Leases(folder / "leases", expiry)
        self._file = folder / "run.json"
        with self.leases.wait(START):
            run = _read(self._file) if self.leases.sweep(PROCESS) else {}
            if run and run["work"] != work:
                raise UserError(
                    f"{folder.parent}: other processes are at work here, on {_said(run['work'])}, not on "
                    f"{_said(work)}. Give the same flags, or wait for their end."
                )
            self._run = run or self._begin(work)
            self.leases.take(PROCESS + secrets.token_hex(8))  # for as long as this process is there
        self._marks = folder / self._run["id"]

    def _begin(self, work: Mapping[str, Any]) -> dict[str, Any]:
        before = _read(self._file)
        id = secrets.token_hex(8)
        (self.folder / id).mkdir()
        speeds = before.get("speeds", {}) | (_speeds(self.folder / before["id"]) if before else {})
        run = {"id": id, "work": dict(work), "before": before.get("id"), "speeds": speeds}
        storage.write_json(self._file, run)
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in (id, run["before"], self.leases.folder.name):
                shutil.rmtree(path, ignore_errors=True)
        return run

    def marked(self, stage: str) -> set[int]:
        """The indices of the shards that are through a stage: an expert, or what comes after them."""
        try:
            return {int(name.removesuffix(".json")) for name in os.listdir(self._marks / stage) if name[0] != "."}
        except FileNotFoundError:
            return set()

    def free(self, stage: str, shards: Sequence[Shard]) -> Iterator[tuple[Lease, Shard]]:
        """Yields those shards that are neither through nor another process's, with the lease of each."""
        names = {f"{stage}.{shard.index:06d}": shard for shard in shards}
        for lease in self.leases.free(names, lambda name: self._mark(stage, names[name]).exists()):
            yield lease, names[lease.name]

    def mark(self, lease: Lease, stage: str, shard: Shard, report: Mapping[str, Any]) -> None:
        """Notes that a shard is through.

        Args:
          report: plain JSON; `made` and `seconds`, of the labels made and the time that took, become the stage's speed;
            `cold` shards, whose time has compilation in it, only where there are no others.

        Raises:
          LeaseLost: another process has taken the shard over and will mark it.
        """
        lease.check()
        mark = self._mark(stage, shard)
        mark.parent.mkdir(exist_ok=True)
        storage.write_json(mark, report, indent=None)

    def reports(self, stage: str) -> dict[int, dict[str, Any]]:
        """What was noted of the shards that are through, by their index."""
        return {index: _read(self._marks / stage / f"{index:06d}.json") for index in sorted(self.marked(stage))}

    def before(self, stage: str, shard: Shard) -> dict[str, Any]:
        """What was noted of a shard in the job before this one; nothing if there was none."""
        before = self._run["before"]
        return _read(self.folder / before / stage / self._mark(stage, shard).name) if before else {}

    def speeds(self) -> dict[str, float]:
        """Labels a second of one process by stage, by the shards of this job or, if there are none, of earlier ones."""
        return self._run["speeds"] | _speeds(self._marks)

    def close(self) -> None:
        """Leaves the job."""
        self.leases.close()

    def _mark(self, stage: str, shard: Shard) -> pathlib.Path:
        return self._marks / stage / f"{shard.index:06d}.json"

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def past_speeds(folder: pathlib.Path) -> dict[str, float]:
    """Labels a second of one process by stage, as the jobs in a folder have reached them so far."""
    run = _read(folder / "run.json")
    return run.get("speeds", {}) | _speeds(folder / run["id"]) if run else {}


def _speeds(marks: pathlib.Path) -> dict[str, float]:
    made: dict[tuple[str, bool], tuple[int, float]] = {}
    for path in marks.glob("*/*.json"):
        report = _read(path)
        key = path.parent.name, not report.get("cold")
        count, seconds = made.get(key, (0, 0.0))
        made[key] = count + report.get("made", 0), seconds + report.get("seconds", 0.0)
    # Those with compilation in them come first, so that others replace them.
    return {stage: count / seconds for (stage, _), (count, seconds) in sorted(made.items()) if count and seconds}


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What stands in a file; nothing if it is not there, or is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return {}


def _said(work: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in work.items())
