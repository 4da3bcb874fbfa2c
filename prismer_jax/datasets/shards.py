"""Reading the records of a data set's shards by number, and writing one shard: whole or not at all."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_data_source, array_record_module

from prismer_jax.datasets import manifest, storage
from prismer_jax.datasets.dropped import Dropped
from prismer_jax.errors import BadSample, UserError

# Records hold JPEG and PNG, which do not compress: trying to takes four times as long to write and a third longer to
# read (1,500 COCO photos of 40 kB: the same bytes, 1.5 s instead of 6.8 s, 0.86 ms a record instead of 1.10 ms).
# Groups of one record are what random access wants.
OPTIONS = "group_size:1,uncompressed"


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
        self._lock = threading.Lock()
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
        with self._lock:
            if self._opened[number] is None:
                path = storage.join(self.folder, self._files[number])
                if self.manifest is None:
                    self._opened[number] = _open(path)
                else:
                    self._opened[number] = open_shard(path, self.manifest.shards[number])
            return self._opened[number]


def open_shard(path: str, row: manifest.Row) -> Sequence[bytes]:
    """The records of one shard.

    Raises:
      UserError: it is missing, or not of the size that its row says.
    """
    found = storage.size(path)
    if found is None:
        raise UserError(f"{path}: the shard is missing. Run the command that built the data set again.")
    if found != row.bytes:
        raise _damaged(path, f"{found} bytes instead of {row.bytes}")
    return _open(f"{storage.local(path, row.bytes)}[0:{row.records}]")


def _open(path: str) -> Sequence[bytes]:
    try:
        return array_record_data_source.ArrayRecordDataSource(path)
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: str, what: str) -> UserError:
    return UserError(f"{path}: the shard is damaged ({what}). Delete it and run the command that built it again.")


def _allow_open_files(count: int) -> None:
    """Each open shard is an open file, of which a process has 1024 by default: as many more as the system lets it."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + 1024
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def take(source: Any, start: int, stop: int) -> Iterator[dict[str, Any] | BadSample]:
    """Examples start..stop of a source; a bad one is handed on as the error it raised."""
    for index in range(start, stop):
        try:
            yield source[index]
        except BadSample as error:
            yield error


def write_shard(
    examples: Iterable[dict[str, Any] | BadSample],
    folder: str | os.PathLike,
    file: str,
    *,
    experts: Sequence[str],
    max_side: int | None = None,
    advance: Any = None,
    check: Any = None,
) -> manifest.Row:
    """Writes one shard and its row, each whole or not at all.

    Args:
      examples: of task 'all' (see datasets/lists.py), with label files or label PNGs; a BadSample in place of an
        example is counted as dropped, as is an example that `ingest.prepare` refuses.
      folder, file: where to; `manifest.shard_name` makes the name.
      experts: whose labels are stored.
      max_side: photos with a longer side are made smaller; None keeps all as they are.
      advance: called after each example.
      check: called before the shard appears; what it raises stops that (a lease that is lost).

    Raises:
      UserError: the disk is full, or nothing can be written there.
    """
    from prismer_jax.datasets import ingest, records

    folder = storage.plain(folder)
    path = storage.join(folder, file)
    serialize = records.serializer(tuple(experts))
    ids: set[str] = set()
    captions, questions, labels, dropped = 0, [], Counter(), Dropped()
    with storage.temporary(path) as name, _write_errors(path):
        writer = array_record_module.ArrayRecordWriter(name, OPTIONS)
        try:
            for example in examples:
                try:
                    arguments = ingest.prepare(example, experts, max_side)
                    if arguments["id"] in ids:
                        raise BadSample(f"example {arguments['id']}: its id was there before.", "duplicate id")
                except BadSample as error:
                    dropped.add_error(error)
                else:
                    writer.write(serialize(records.encode(**arguments)))
                    ids.add(arguments["id"])
                    captions += len(arguments["captions"])
                    questions.append(len(arguments["questions"]))
                    labels.update(arguments["labels"].keys())
                if advance is not None:
                    advance()
        finally:
            writer.close()
        row = manifest.Row(
            file=file,
            records=len(questions),
            bytes=os.path.getsize(name),
            sha256=sha256(name),
            captions=captions,
            questions=questions[0] if len(set(questions)) == 1 else questions if any(questions) else 0,
            labels={expert: labels[expert] for expert in experts},
            dropped=dropped.to_json(),
        )
        if check is not None:
            check()
        storage.publish(name, path)
        manifest.write_row(folder, row)
    return row


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _write_errors(path: str) -> Iterator[None]:
    """A full or read-only disk as one line; array_record raises RuntimeError with the system's words inside."""
    try:
        yield
    except RuntimeError as error:
        known = ("failed: ", "No space left", "File too large", "Permission denied", "Read-only")
        if not any(word in str(error) for word in known):
            raise
        raise UserError(f"{path}: cannot be written ({str(error).split(';')[0]}). {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). {REMEDY}") from None


REMEDY = "Free space or choose another --output, and run it again: what is whole is kept."
