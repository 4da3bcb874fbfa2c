"""Verifies a finished data set: shards against their manifest, and every record's photo, labels, ids and texts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from prismer_jax import label_png, labels
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import progress, storage, workers
from prismer_jax.files.dropped import Dropped
from prismer_jax.pp import image
from prismer_jax.shards import manifest, metadata, reader, records, writer

SHOWN = 100  # rows of shards in the table: beyond, only those with problems

_decode = image.decode()


@dataclasses.dataclass
class Checked:
    """What was found in one shard.

    Attributes:
      labels: expert -> records that have its label.
      empty: expert -> of these, maps that hold nothing.
      ids: int64 [records]: hashes of the ids; -1 of a record that cannot be read.
      problems: by kind.
    """

    labels: Counter[str]
    empty: Counter[str]
    ids: np.ndarray
    problems: Dropped


def check(folder: str, processes: int = 1) -> bool:
    """Reads all of a data set; prints a table of its shards and a line for each kind of problem.

    Returns:
      whether there are none.

    Raises:
      UserError: the folder has no manifest, or a damaged one.
    """
    listed = manifest.read(folder)
    if listed is None:
        raise UserError(
            f"{folder}: has no {manifest.FILE}: no finished data set. Run the command that builds it again."
        )
    results = []
    with (
        workers.ordered_map(functools.partial(check_shard, folder), listed.shards, processes) as checked,
        progress.bar(f"Checking {folder}", listed.records, unit="records") as advance,
    ):
        for row, result in zip(listed.shards, checked, strict=True):
            results.append(result)
            advance(row.records)
    _find_duplicates(folder, listed, results)
    total = Dropped()
    for result in results:
        total.update(result.problems)
    _print_table(listed, results)
    if dropped := metadata.dropped(listed):
        print(f"{dropped.total:,} samples were left out when it was built:")
        print("\n".join(dropped.lines()))
    if total:
        print(f"{folder}: {total.total:,} problems")
        print("\n".join(total.lines()))
    else:
        print(f"{folder}: whole, {listed.records:,} records in {len(listed.shards):,} shards")
    return not total


def check_shard(folder: str, row: manifest.Row) -> Checked:
    """Reads one shard, record by record."""
    path = storage.join(folder, row.file)
    problems, present, empty, ids = Dropped(), Counter(), Counter(), np.full(row.records, -1)
    captions, questions = [], []
    try:
        opened = reader.open_shard(path, row)
        if writer.sha256(storage.local(path, row.bytes, row.sha256)) != row.sha256:
            problems.add("checksum", f"{path}: its bytes are not those that were written (SHA-256).")
        for number in range(row.records):
            where = f"{row.file}, record {number}"
            try:
                example = records.decode(opened[number], "all")
            except Exception as error:  # array_record's, and protobuf's own
                problems.add("unreadable record", f"{where}: {error}")
                continue
            ids[number] = zlib.crc32(example["id"].encode())
            captions.append(len(example["captions"]))
            questions.append(len(example["questions"]))
            try:
                check_example(example)
            except BadSample as error:
                problems.add(error.reason, f"{where} ({example['id']}): {error}")
            else:
                for name in labels.EXPERTS:
                    if (map := example.get(f"labels/{name}")) is not None:
                        present[name] += 1
                        empty[name] += _is_empty(name, map)
    except UserError as error:
        problems.add("shard", str(error))
        return Checked(present, empty, np.zeros(0, int), problems)
    if not problems and (
        captions != row.of_records("captions").tolist()
        or questions != row.of_records("questions").tolist()
        or any(present[name] != count for name, count in row.labels.items())
    ):
        problems.add("counts", f"{path}: its captions, questions or labels are not as many as the manifest says.")
    return Checked(present, empty, ids, problems)


def check_example(example: dict[str, Any]) -> None:
    """Raises BadSample where a photo or a label does not decode or fit, or an id has nothing that it stands for."""
    decoded = _decode(example, None)
    if "labels/obj_detection" in decoded:
        table, count = decoded[labels.CLASSES_KEY], labels.EXPERTS["obj_detection"].num_classes
        for instance in _ids(decoded["labels/obj_detection"]):
            if not 0 <= table[instance] < count:
                raise BadSample(
                    f"instance {instance} has class {table[instance]}, not one of 0..{count - 1}.",
                    "class of an instance",
                )
    if "labels/ocr_detection" in decoded:
        words = len(example["words"])
        if not np.isfinite(decoded[labels.WORDS_KEY]).all():
            raise BadSample("the features of its words are not finite.", "features of words")
        for word in _ids(decoded["labels/ocr_detection"]):
            if word >= words:
                raise BadSample(f"word {word} of the map is none of its {words} words.", "word without features")
    for question in example["questions"]:
        if len(question["answers"]) != len(question["answer_weights"]):
            raise BadSample(
                f"question {question['question']!r}: answers and weights differ in number.", "answer weights"
            )


def _ids(map: np.ndarray) -> np.ndarray:
    present = np.bincount(map.ravel(), minlength=256)
    present[labels.BACKGROUND] = 0
    return np.flatnonzero(present)


def _is_empty(name: str, png: bytes) -> bool:
    return bool((label_png.decode(name, png) == labels.EXPERTS[name].fill).all())


def _find_duplicates(folder: str, listed: manifest.Manifest, results: Sequence[Checked]) -> None:
    """Adds ids that several records have. Hashes tell which may: only those are read again."""
    hashes, counts = np.unique(np.concatenate([result.ids for result in results]), return_counts=True)
    suspects = hashes[(counts > 1) & (hashes >= 0)]
    first: dict[str, str] = {}
    for row, result in zip(listed.shards, results, strict=True):
        for number in np.flatnonzero(np.isin(result.ids, suspects)) if len(suspects) else ():
            with contextlib.suppress(UserError):
                opened = reader.open_shard(storage.join(folder, row.file), row)
                id = records.decode(opened[int(number)])["id"]
                where = f"{row.file}, record {number}"
                if id in first:
                    result.problems.add("duplicate id", f"{where}: {id!r} is also that of {first[id]}.")
                first.setdefault(id, where)


def _print_table(listed: manifest.Manifest, results: Sequence[Checked]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{listed.name}, {listed.split}: labels present (of them empty)")
    table.add_column("shard")
    for title in ("records", "captions", "questions", "MB", *listed.experts, "problems"):
        table.add_column(title, justify="right")
    for number, (row, result) in enumerate(zip(listed.shards, results, strict=True)):
        if len(results) <= SHOWN or result.problems:
            table.add_row(str(number), *_cells(listed, [row], [result]))
    table.add_section()
    table.add_row("all", *_cells(listed, listed.shards, results))
    console = Console()
    Console(width=None if console.is_terminal else 200, highlight=False).print(table)


def _cells(listed: manifest.Manifest, rows: Sequence[manifest.Row], results: Sequence[Checked]) -> list[str]:
    there, empty = Counter(), Counter()
    for result in results:
        there.update(result.labels)
        empty.update(result.empty)
    counts = [
        sum(row.records for row in rows),
        sum(row.total("captions") for row in rows),
        sum(row.total("questions") for row in rows),
    ]
    return [
        *(f"{count:,}" for count in counts),
        f"{sum(row.bytes for row in rows) / 1e6:.1f}",
        *(f"{there[name]:,} ({empty[name]:,})" for name in listed.experts),
        f"{sum(result.problems.total for result in results):,}",
    ]
