"""What all processes of a job know in common, as files: which shards are done and how each went.

    ledger = Ledger(output / ".make_labels", {"photos": 1000, "shard_size": 256})
    for lease, shard in ledger.free("depth", shards):
        ...
        ledger.mark(lease, "depth", shard, {"made": 256, "seconds": 12.5})

    FOLDER/run.json                  what the job is at, and its id
    FOLDER/<id>/depth.000012.json    shard 12 is done by depth, and how it went
    FOLDER/leases/                   who works on what, and who is there at all (see prismer_jax/leases.py)

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

from prismer_jax import config, leases
from prismer_jax.errors import UserError
from prismer_jax.leases import Lease, Leases

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
        self._marked: set[str] = set()
        self._presence: Lease | None = None
        for lease in self.leases.share([START], lambda _: self._presence is not None):
            with lease:
                run = _read(self._file) if self.leases.sweep(PROCESS) else {}
                if run and run["work"] != work:
                    raise UserError(
                        f"{folder.parent}: other processes are at work here, on {_said(run['work'])}, not on "
                        f"{_said(work)}. Give the same flags, or wait for their end."
                    )
                self._run = run or self._begin(work)
                self._presence = self.leases.take(PROCESS + secrets.token_hex(8))
        self._marks = folder / self._run["id"]

    def _begin(self, work: Mapping[str, Any]) -> dict[str, Any]:
        past = [path for path in self.folder.iterdir() if path.is_dir() and path != self.leases.folder]
        rates = _read(self._file).get("rates", {})
        for path in past:
            rates |= _rates(path)
        run = {"id": secrets.token_hex(8), "work": dict(work), "rates": rates}
        (self.folder / run["id"]).mkdir()
        config.write(self._file, json.dumps(run, indent=2))
        for path in past:
            shutil.rmtree(path, ignore_errors=True)
        return run

    def done(self, stage: str, shard: Shard) -> bool:
        """Whether a shard is through a stage: an expert, or what comes after them."""
        return self._is_marked(_name(stage, shard))

    def free(self, stage: str, shards: Sequence[Shard]) -> Iterator[tuple[Lease, Shard]]:
        """Yields those shards that are neither done nor another process's, with the lease of each."""
        names = {_name(stage, shard): shard for shard in shards}
        for lease in self.leases.free(names, self._is_marked):
            yield lease, names[lease.name]

    def mark(self, lease: Lease, stage: str, shard: Shard, report: Mapping[str, Any]) -> None:
        """Notes that a shard is done.

        Args:
          report: plain JSON; `made` and `seconds`, of the labels made and the time that took, become the stage's rate.

        Raises:
          LeaseLost: another process has taken the shard over and will mark it.
        """
        lease.check()
        config.write(self._marks / f"{_name(stage, shard)}.json", json.dumps(report))

    def reports(self, stage: str) -> dict[int, dict[str, Any]]:
        """What was noted of the shards that are done, by their index."""
        return {int(path.suffixes[-2][1:]): _read(path) for path in sorted(self._marks.glob(f"{stage}.*.json"))}

    def rate(self, stage: str) -> float | None:
        """Labels a second of one process, by the shards of this job or, if there is none, of earlier ones; or None."""
        return (self._run["rates"] | _rates(self._marks)).get(stage)

    def close(self) -> None:
        """Leaves the job."""
        if self._presence is not None:
            self._presence.release()

    def _is_marked(self, name: str) -> bool:
        if name not in self._marked and (self._marks / f"{name}.json").exists():
            self._marked.add(name)
        return name in self._marked

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def past_rates(folder: pathlib.Path) -> dict[str, float]:
    """Labels a second of one process by stage, as the jobs in a folder have reached them so far."""
    rates = _read(folder / "run.json").get("rates", {})
    for path in folder.iterdir() if folder.is_dir() else ():
        rates |= _rates(path)
    return rates


def _rates(marks: pathlib.Path) -> dict[str, float]:
    made: dict[str, tuple[int, float]] = {}
    for path in marks.glob("*.json"):
        report, stage = _read(path), path.name.partition(".")[0]
        count, seconds = made.get(stage, (0, 0.0))
        made[stage] = count + report.get("made", 0), seconds + report.get("seconds", 0.0)
    return {stage: count / seconds for stage, (count, seconds) in made.items() if count and seconds}


def _name(stage: str, shard: Shard) -> str:
    return f"{stage}.{shard.index:06d}"


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What stands in a file; nothing if it is not there, or is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return {}


def _said(work: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in work.items())
