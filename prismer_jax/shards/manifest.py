"""The manifest of a data set: which shards it has, what is in them, and what they were made from and with.

A row describes one shard. It is the mark that the shard is done, written beside it, after it: a shard without its row,
or of another size than its row says, is not whole. When all are whole their rows become FOLDER/manifest.json, which
readers go by.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Literal

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped

FILE, PLAN = "manifest.json", "plan.json"  # of a finished data set; of one that is begun
FORMAT = 1  # of the manifest and of the records: readers refuse others


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """As TFDS calls the shards of a split."""
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def identifier(text: str) -> str:
    """A text as TFDS wants names of data sets: lower case letters, digits and underscores, a letter first."""
    word = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return word if word[:1].isalpha() else f"data_{word}".rstrip("_")


@dataclasses.dataclass(frozen=True)
class Row:
    """One shard.

    Attributes:
      file: its name in the data set's folder.
      records, bytes, sha256: of the file.
      captions, questions: of each record; one number where all have as many.
      labels: expert -> records that have its label.
      dropped: samples that could not be used, by reason: `Dropped.to_json`.
    """

    file: str
    records: int
    bytes: int
    sha256: str
    captions: int | list[int]
    questions: int | list[int]
    labels: dict[str, int]
    dropped: dict[str, Any]

    def of_records(self, what: Literal["captions", "questions"]) -> np.ndarray:
        """int64 [records]: how many captions or questions each record has."""
        return np.broadcast_to(np.asarray(getattr(self, what), np.int64), self.records)

    def total(self, what: Literal["captions", "questions"]) -> int:
        return int(self.of_records(what).sum())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def whole(folder: str, file: str, report: Mapping[str, Any] | None) -> Row | None:
    """Returns the row of a shard, which its mark reports, if the shard is whole; None if it is to be made (again)."""
    try:
        shard = parse_row(report or {})
    except (ValueError, TypeError):  # there is no mark, or it was not written by this program
        return None
    return shard if shard.file == file and storage.size(storage.join(folder, file)) == shard.bytes else None


def parse_row(values: Mapping[str, Any]) -> Row:
    """Returns the row that `Row.to_json` wrote; raises TypeError or ValueError for anything else."""
    shard = Row(**values)
    for numbers in (shard.captions, shard.questions):
        if not isinstance(numbers, int) and len(numbers) != shard.records:
            raise ValueError(f"{shard.file}: {len(numbers)} numbers for {shard.records} records")
    return shard


def counts(values: Sequence[int]) -> int | list[int]:
    """One number where all are the same."""
    return list(values) if len(set(values)) > 1 else values[0] if values else 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A whole data set.

    Attributes:
      name, split: as TFDS knows it.
      experts: whose labels the records may have.
      made_from: what the builder was given: list, folder, tar shards ..., and how it treated them.
      labels: expert -> what is known of how its labels were made (which weights, when).
      versions: of the packages that wrote it.
      shards: a row each, in order.
    """

    name: str
    split: str
    experts: tuple[str, ...]
    made_from: dict[str, Any]
    labels: dict[str, Any]
    versions: dict[str, str]
    shards: tuple[Row, ...]

    @functools.cached_property
    def records(self) -> int:
        return sum(row.records for row in self.shards)

    @functools.cached_property
    def dropped(self) -> Dropped:
        """Of the source as a whole, and of all shards."""
        total = Dropped.from_json(self.made_from.get("dropped", {}))
        for row in self.shards:
            total.update(Dropped.from_json(row.dropped))
        return total

    def totals(self) -> dict[str, Any]:
        """What the shards hold together."""
        labels: Counter[str] = Counter()
        for row in self.shards:
            labels.update(row.labels)
        return {
            "records": self.records,
            "captions": sum(row.total("captions") for row in self.shards),
            "questions": sum(row.total("questions") for row in self.shards),
            "bytes": sum(row.bytes for row in self.shards),
            "labels": {name: labels[name] for name in self.experts},
            "dropped": self.dropped.to_json(),
        }


def write(folder: str, manifest: Manifest) -> None:
    """Writes FOLDER/manifest.json."""
    values = {"format": FORMAT} | {
        field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest) if field.name != "shards"
    }
    lines = ",\n".join(f"    {json.dumps(row.to_json())}" for row in manifest.shards)  # one shard a line
    head = json.dumps(values | {"totals": manifest.totals()}, indent=2).removesuffix("\n}")
    storage.write(storage.join(folder, FILE), f'{head},\n  "shards": [\n{lines}\n  ]\n}}\n')


def read(folder: str) -> Manifest | None:
    """The manifest of a data set; None where the folder has none.

    Raises:
      UserError: it is damaged, or of another format.
    """
    path = storage.join(folder, FILE)
    try:
        values = json.loads(storage.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}). Delete it and build the data set again.") from None
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: has format {found}, this version of prismer_jax reads {FORMAT}. Build it again.")
    try:
        values.pop("totals")
        rows = tuple(map(parse_row, values.pop("shards")))
        return Manifest(experts=tuple(values.pop("experts")), shards=rows, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}). Delete it and build the data set again.") from None


def finish(
    folder: str,
    *,
    name: str,
    split: str,
    experts: Sequence[str],
    rows: Sequence[Row],
    made_from: dict[str, Any],
    labels: dict[str, Any],
) -> Manifest:
    """Makes a folder of whole shards a data set: writes TFDS's metadata and then the manifest.

    Raises:
      UserError: no shard has a record.
    """
    manifest = Manifest(name, split, tuple(experts), made_from, labels, versions(), tuple(rows))
    if not manifest.records:
        reasons = "; ".join(manifest.dropped.lines())
        raise UserError(f"{folder}: not one sample could be used ({reasons or 'the source is empty'}).")
    _write_tfds_metadata(folder, manifest)
    write(folder, manifest)
    return manifest


def _write_tfds_metadata(folder: str, manifest: Manifest) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info

    from prismer_jax.shards import records

    with tempfile.TemporaryDirectory() as scratch:
        template = tfds.core.ShardedFileTemplate(
            data_dir=scratch, dataset_name=manifest.name, split=manifest.split, filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name=manifest.split,
            shard_lengths=[row.records for row in manifest.shards],
            num_bytes=sum(row.bytes for row in manifest.shards),
            filename_template=template,
        )
        identity = dataset_info.DatasetIdentity(
            name=manifest.name, version=tfds.core.Version(f"{FORMAT}.0.0"), data_dir=scratch, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=records.features(manifest.experts),
            description="Photos with captions, questions and expert labels, written by prismer_jax.",
            disable_shuffling=True,
        )
        info.set_file_format("array_record")
        info.set_splits(tfds.core.splits.SplitDict([split]))
        info.write_to_directory(scratch)
        for file in pathlib.Path(scratch).iterdir():
            storage.write(storage.join(folder, file.name), file.read_bytes())


def versions() -> dict[str, str]:
    """Of the packages that decide what stands in a record."""
    found = {}
    for name in ("prismer_jax", "tensorflow-datasets", "array_record", "pillow", "opencv-python-headless", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # OpenCV may be another of its four packages
            found[name] = metadata.version(name)
    return found
