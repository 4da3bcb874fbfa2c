"""Reading the records of a data set's shards by number."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import resource
import threading
from collections.abc import Sequence
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.shards import manifest


class Shards:
    """The records of all shards of a folder, one after the other: `len(shards)`, `shards[i]` -> bytes.

    A shard is opened, and copied to the local cache if it lies where array_record cannot read, when its first record is
    asked for; it stays open. Threads may share it.

    Attributes:
      manifest: of the data set; None where the folder has none, only shards (the embedded scenes).
    """

    def __init__(self, folder: str) -> None:
        """Raises UserError if there are no shards, or the manifest is damaged."""
        self.folder, self.manifest = folder, manifest.read(folder)
        if self.manifest is not None:
            self._files = [row.file for row in self.manifest.shards]
            lengths = [row.records for row in self.manifest.shards]
        else:
            self._files = [name for name in storage.names(folder) if ".array_record" in name]
            lengths = [len(_open(storage.join(folder, name))) for name in self._files]
        if not self._files:
            raise UserError(f"{folder}: holds no ArrayRecord shards. Delete it, so that it is built again.")
        self._ends = list(itertools.accumulate(lengths))
        self._opened: list[Any] = [None] * len(self._files)
        self._locks = [threading.Lock() for _ in self._files]  # several may be fetched at once
        _allow_open_files(len(self._files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        records = self._opened[number] or self._open(number)
        try:
            return records[index - (self._ends[number - 1] if number else 0)]
        except (RuntimeError, ValueError, IndexError) as error:  # what array_record says of damaged bytes
            raise _damaged(storage.join(self.folder, self._files[number]), str(error)) from None

    def _open(self, number: int) -> Any:
        with self._locks[number]:
            if self._opened[number] is None:
                path = storage.join(self.folder, self._files[number])
                if self.manifest is None:
                    self._opened[number] = _open(path)
                else:
                    self._opened[number] = open_shard(path, self.manifest.shards[number])
            return self._opened[number]


def open_shard(path: str, row: manifest.Row) -> Sequence[bytes]:
    """Returns the records of one shard.

    Raises:
      UserError: it is missing, or not of the size that its row says.
    """
    size = storage.size(path)
    if size is None:
        raise UserError(f"{path}: the shard is missing. Run the command that built the data set again.")
    if size != row.bytes:
        raise _damaged(path, f"{size} bytes instead of {row.bytes}")
    return _open(f"{storage.local(path, row.bytes, row.sha256)}[0:{row.records}]")


def _open(path: str) -> Sequence[bytes]:
    from array_record.python import array_record_data_source  # no earlier: see workers.THREADED

    try:
        return array_record_data_source.ArrayRecordDataSource(path)
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: str, what: str) -> UserError:
    if "open() failed" in what:  # the bytes may be good
        reason = f"({what.split(';')[0]}). Check that it may be read, and how many files may be open (ulimit -n)."
        return UserError(f"{path}: the shard cannot be opened {reason}")
    return UserError(f"{path}: the shard is damaged ({what}). Delete it and run the command that built it again.")


def _allow_open_files(count: int) -> None:
    """Each open shard is an open file, of which a process has 1024 by default: as many more as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = count + 1024
    if soft < limit:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit if hard < 0 else min(limit, hard), hard))
