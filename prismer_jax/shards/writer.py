"""Writing one shard of a data set: whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module

from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.shards import ingest, manifest, schema

# Groups of one record are what random access wants. The maps of a record are not compressed otherwise; photos are, and
# without maps trying it takes four times as long to write and a third longer to read (1,500 COCO photos of 40 kB: the
# same bytes, 1.5 s instead of 6.8 s, 0.86 ms a record instead of 1.10 ms).
WITH_MAPS, PHOTOS_ALONE = "group_size:1,zstd:1", "group_size:1,uncompressed"
REMEDY = "Free space or choose another --output, and run it again: what is whole is kept."


def take(source: Any, start: int, stop: int) -> Iterator[dict[str, Any] | BadSample]:
    """Yields examples start..stop of a source; a bad one is handed on as the error it raised."""
    for index in range(start, stop):
        try:
            yield source[index]
        except BadSample as error:
            yield error


def write_shard(
    examples: Iterable[dict[str, Any] | BadSample],
    folder: storage.PathLike,
    file: str,
    *,
    experts: Sequence[str],
    max_side: int | None = None,
    advance: Callable[[], Any] | None = None,
    check: Callable[[], Any] | None = None,
) -> manifest.Row:
    """Writes one shard, whole or not at all; returns its row, which the caller writes beside it.

    Args:
      examples: of task 'all' (see datasets/lists/), with label files or label PNGs; a BadSample in place of an
        example is counted as dropped, as is an example that `ingest.prepare` refuses, and what `left_out` tells.
      folder, file: where to; `metadata.shard_name` makes the name.
      experts: whose labels are stored.
      max_side: photos with a longer side are made smaller; None keeps all as they are.
      advance: called after each example.
      check: called before the shard appears; what it raises stops that (a lease that is lost).

    Raises:
      UserError: the disk is full, or nothing can be written there.
    """
    folder = storage.plain(folder)
    path = storage.join(folder, file)
    serialize = schema.serializer(tuple(experts))
    ids: set[str] = set()
    captions, questions, labels, dropped = [], [], Counter(), Dropped()
    with _write_errors(path), storage.replacing(path) as name:
        writer = array_record_module.ArrayRecordWriter(name, WITH_MAPS if experts else PHOTOS_ALONE)
        try:
            for example in examples:
                try:
                    arguments = ingest.prepare(example, experts, max_side)
                    if arguments["id"] in ids:
                        raise BadSample(f"example {arguments['id']}: its id was there before.", "duplicate id")
                except BadSample as error:
                    dropped.add_error(error)
                else:
                    writer.write(serialize(schema.encode(**arguments)))
                    ids.add(arguments["id"])
                    for reason, case in example.get("left_out", ()):  # of a photo that itself is fine
                        dropped.add(reason, case)
                    captions.append(len(arguments["captions"]))
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
            captions=_counts(captions),
            questions=_counts(questions),
            labels={expert: labels[expert] for expert in experts},
            dropped=dropped.to_json(),
        )
        if check is not None:
            check()
    return row


def _counts(values: Sequence[int]) -> int | list[int]:
    """Returns one number where all are the same."""
    return list(values) if len(set(values)) > 1 else values[0] if values else 0


def sha256(path: str) -> str:
    """Returns the checksum of a file, local or remote, in hexadecimal."""
    with storage.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _write_errors(path: str) -> Iterator[None]:
    """A full or read-only disk as one line; array_record raises RuntimeError with the system's words inside."""
    try:
        yield
    except RuntimeError as error:
        disk_errors = ("failed: ", "No space left", "File too large", "Permission denied", "Read-only")
        if not any(word in str(error) for word in disk_errors):
            raise
        raise UserError(f"{path}: cannot be written ({str(error).split(';')[0]}). {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). {REMEDY}") from None
