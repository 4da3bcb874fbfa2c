"""Leases as files: processes on one or many hosts share work through a file system, and any may die at any time.

    leases = Leases(output / "leases")
    with leases.wait("report") as lease:
        text = report()
        lease.check()  # raises LeaseLost where another process took over meanwhile
        storage.write(output / "report.txt", text)

A lease only keeps others from doing the same at the same time; what is done is told by marks, see work.py. A lease
that is taken from a process which was merely slow costs work done twice, nothing else.

A lease of NAME is the file `NAME.<generation>.lease`, made with O_EXCL, which local disks and NFS grant to one process
only. Its owner touches it now and then. One whose owner is dead (told at once on the owner's host), or that nobody
touched for `expiry` seconds, is stolen by making the next generation, again with O_EXCL: of several thieves one wins.
The highest generation is the one that counts. Ages are measured by the file system's clock, not by the hosts'.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import socket
import tempfile
import threading
import time
from typing import Any

from prismer_jax.files import storage

EXPIRY = 180.0  # seconds without a sign of life; beats come five times as often
BEATS = 5
NAMELESS = 10.0  # the same of one without its owner's name, which who makes it writes at once, unless killed
POLL = 5.0  # seconds between two looks at what others hold
SUFFIX = ".lease"


class LeaseLost(Exception):
    """Another process holds the lease now: what was made under it must not be published."""


class Lease:
    """The right to work on `name`. Ends with `release` or the `with` block, or is lost; `Leases.take` makes it."""

    def __init__(self, leases: Leases, name: str, generation: int) -> None:
        self.name, self.generation = name, generation
        self.path = leases.file(name, generation)
        self._leases, self._token = leases, secrets.token_hex(8)

    def held(self) -> bool:
        """Returns whether it is still this process's: its file is there, with this token, and none of a later one."""
        generations = self._leases.generations(self.name)
        return bool(generations) and generations[-1] == self.generation and self._is_mine()

    def check(self) -> None:
        """Raises LeaseLost where `held` is false. To be called right before the work is published."""
        if not self.held():
            raise LeaseLost(f"{self.name}: another process took over, for this one gave no sign of life for too long.")

    def release(self) -> None:
        """Ends it; harmless where it has been lost or has ended."""
        self._leases.forget(self)
        if self._is_mine():
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Gives a sign of life."""
        if self._is_mine():
            os.utime(self.path)

    def create(self) -> bool:
        """Makes the file; returns whether nobody was faster."""
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(_me() | {"token": self._token}).encode())
        except OSError:  # a full disk
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _is_mine(self) -> bool:
        return storage.read_json(self.path, {}).get("token") == self._token

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


class Leases:
    """The leases in one folder, and a thread that keeps alive those this process holds. Make one in each process."""

    def __init__(self, folder: storage.PathLike, expiry: float = EXPIRY) -> None:
        """Args:
        folder: on a file system that all processes share; made if need be. It holds nothing else.
        expiry: seconds without a sign of life after which a lease may be stolen; the same in all processes.
        """
        self.folder, self.expiry = pathlib.Path(folder), expiry
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, name: str) -> Lease | None:
        """Returns the lease of a name, if it is free or its owner is gone; else None, at once.

        Look whether the work is done *after* taking it: another process may just have finished and released it.
        """
        if os.path.basename(name) != name or not name:
            raise ValueError(f"{name!r}: a lease's name becomes a file's")
        older = self.generations(name)
        if older and not self._abandoned(self.file(name, older[-1])):
            return None
        lease = Lease(self, name, older[-1] + 1 if older else 1)
        if not lease.create():
            return None
        for generation in older:
            self.file(name, generation).unlink(missing_ok=True)
        if not lease.held():  # between our look and our file another one was released, stolen, or made anew
            lease.release()
            return None
        self._keep_alive(lease)
        return lease

    def wait(self, name: str, poll: float = POLL) -> Lease:
        """Returns the lease of a name, as soon as it is free."""
        while (lease := self.take(name)) is None:
            time.sleep(min(poll, self.expiry / BEATS))
        return lease

    def close(self) -> None:
        """Releases all that this process holds."""
        with self._lock:
            held = list(self._held)
        for lease in held:
            lease.release()

    def sweep(self, prefix: str = "") -> list[str]:
        """Removes what the dead have left of leases whose names begin so; returns the names that the living hold."""
        pattern = re.compile(rf"({re.escape(prefix)}.*)\.\d+{re.escape(SUFFIX)}")
        living = []
        for name in sorted({match[1] for match in map(pattern.fullmatch, os.listdir(self.folder)) if match}):
            generations = self.generations(name)
            if generations and not self._abandoned(self.file(name, generations[-1])):
                living.append(name)
                continue
            for generation in generations:
                self.file(name, generation).unlink(missing_ok=True)
        return living

    def generations(self, name: str) -> list[int]:
        """Returns the generations of a lease, lowest first. The folder is small: leases end with their work."""
        pattern = re.compile(re.escape(name) + r"\.(\d+)" + re.escape(SUFFIX))
        return sorted(int(match[1]) for match in map(pattern.fullmatch, os.listdir(self.folder)) if match)

    def file(self, name: str, generation: int) -> pathlib.Path:
        return self.folder / f"{name}.{generation}{SUFFIX}"

    def forget(self, lease: Lease) -> None:
        """Keeps a lease alive no longer."""
        with self._lock:
            self._held.discard(lease)

    def _abandoned(self, path: pathlib.Path) -> bool:
        owner = storage.read_json(path, {})  # nothing of one that is away or just being written
        if owner.get("host") == _me()["host"] and not _alive(owner):
            return True
        try:
            return self._now() - path.stat().st_mtime > (self.expiry if owner else min(self.expiry, NAMELESS))
        except FileNotFoundError:  # released this moment: the next look will find it free
            return False

    def _now(self) -> float:
        """The time by the file system's clock, which all hosts share: on NFS it is the server's."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime

    def _keep_alive(self, lease: Lease) -> None:
        with self._lock:
            self._held.add(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()

    def _beat(self) -> None:
        while True:
            time.sleep(self.expiry / BEATS)
            with self._lock:
                held = list(self._held)
                if not held:
                    self._thread = None
                    return
            for lease in held:
                with contextlib.suppress(
                    OSError
                ):  # a disk that is away for a moment: `check` tells whether it mattered
                    lease.beat()


def _me() -> dict[str, Any]:
    """This process. Containers may share a host's name but not its process ids, so those are told apart, and so are
    processes that got the id of a dead one."""
    host = [socket.gethostname()]
    with contextlib.suppress(OSError):  # neither is there but on Linux
        host.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        host.append(os.readlink("/proc/self/ns/pid"))
    return {"host": " ".join(host), "pid": os.getpid(), "started": _started(os.getpid())}


def _alive(owner: dict[str, Any]) -> bool:
    """Whether a process of this host runs: not ended, nor dead and unburied (a zombie), nor another of the same id."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return _started(owner["pid"]) == owner["started"]


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the host did; '' of a zombie; None where the system has no /proc."""
    try:
        # proc(5): the second field is the program's name in brackets, which may hold anything; state is the third
        # field, the start the twenty-second.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
