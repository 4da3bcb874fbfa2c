"""What an evaluation has found so far, kept as it comes: a run that is killed goes on with the batches that are left.

A process appends to a file of its own, FOLDER/NAME.PROCESS.jsonl. The first line says what is evaluated: the weights,
the settings, the data. A file with another first line is of another evaluation and is never read further; of a line
that was not written to its end, and of what stands after it, nothing is taken.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Entry = dict[str, Any]

SYNC_EVERY = 10.0  # seconds: a crash of the machine loses no more than that, a crash of the process nothing

logger = logging.getLogger(__name__)


class Journal(contextlib.AbstractContextManager):
    """The entries of one evaluator: `read` those of earlier starts, then `write`, as a context.

    Args:
      folder: shared by all processes, made if need be. Where it is not, what other machines found is found again.
      name: of the evaluator.
      header: what is evaluated, as JSON has it; other weights, settings or data, another header.
      process_index, process_count: of this start; earlier ones may have had another number of processes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        header: Mapping[str, Any],
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self._folder, self._name = pathlib.Path(folder), name
        self._header = json.dumps(header, sort_keys=True) + "\n"
        self._process_index, self._process_count = process_index, process_count
        self._path = self._folder / f"{name}.{process_index}.jsonl"
        self._file: Any = None
        self._synced = 0.0

    def read(self) -> list[Entry]:
        """Returns this process's share of what earlier starts wrote, to be called once by each, before any writes.

        The share is what the processes whose numbers are this one's, modulo the number of processes, have written.
        """
        entries: list[Entry] = []
        for path in self._files():
            if int(path.name.split(".")[-2]) % self._process_count == self._process_index:
                own_entries, whole = self._read(path)
                entries += own_entries
                if whole < path.stat().st_size:
                    os.truncate(path, whole)  # so that what is appended begins a line
        return entries

    def write(self, entries: Iterable[Entry]) -> None:
        """Appends entries, which are then safe from a kill of the process."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
            if self._file.tell() == 0:
                self._file.write(self._header.encode())
        self._file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def discard(self) -> None:
        """Deletes what all processes have written, when the results are there."""
        self.close()
        for path in self._files():
            path.unlink()
        with contextlib.suppress(OSError):  # other evaluators' files are there, or none was ever written
            self._folder.rmdir()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _files(self) -> Sequence[pathlib.Path]:
        if not self._folder.is_dir():
            return []
        return sorted(
            p for p in self._folder.iterdir() if re.fullmatch(rf"{re.escape(self._name)}\.[0-9]+\.jsonl", p.name)
        )

    def _read(self, path: pathlib.Path) -> tuple[list[Entry], int]:
        """Returns a file's entries and up to which byte it is whole: 0 for that of another evaluation."""
        with path.open("rb") as file:
            if (header := file.readline()) != self._header.encode():
                if header:
                    logger.warning("%s: of another checkpoint, config or data set; it is begun anew.", path)
                return [], 0
            entries, whole = [], len(header)
            for entry, size in _whole_lines(file):
                entries.append(entry)
                whole += size
        return entries, whole


def _whole_lines(file: Iterable[bytes]) -> Iterator[tuple[Entry, int]]:
    for line in file:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n") or not isinstance(entry, dict):
            return
        yield entry, len(line)
