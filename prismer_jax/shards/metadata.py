"""What makes a folder of shards a data set: their names, the marks of whole ones, TFDS's metadata and the manifest.

The mark that a shard is done is its row, written beside it, after it: a shard without its row, or of another size than
its row says, is not whole. When all are whole their rows become FOLDER/manifest.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.shards.manifest import FILE, FORMAT, Manifest, Row, parse_row
from prismer_jax.shards.schema import features


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """Returns the name of a shard of a split, as TFDS builds it."""
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def identifier(text: str) -> str:
    """Returns a text as TFDS wants names of data sets: lower case letters, digits and underscores, a letter first."""
    word = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return word if word[:1].isalpha() else f"data_{word}".rstrip("_")


def whole(folder: str, file: str, report: Mapping[str, Any] | None) -> Row | None:
    """Returns the row of a shard, which its mark reports, if the shard is whole; None if it is to be made (again)."""
    try:
        shard = parse_row(report or {})
    except (ValueError, TypeError):  # there is no mark, or it was not written by this program
        return None
    return shard if shard.file == file and storage.size(storage.join(folder, file)) == shard.bytes else None


def dropped(manifest: Manifest) -> Dropped:
    """Returns what was left out of the source as a whole, and of all shards."""
    total = Dropped.from_json(manifest.made_from.get("dropped", {}))
    for row in manifest.shards:
        total.update(Dropped.from_json(row.dropped))
    return total


def totals(manifest: Manifest) -> dict[str, Any]:
    """Returns what the shards hold together."""
    labels: Counter[str] = Counter()
    for row in manifest.shards:
        labels.update(row.labels)
    return {
        "records": manifest.records,
        "captions": sum(row.total("captions") for row in manifest.shards),
        "questions": sum(row.total("questions") for row in manifest.shards),
        "bytes": sum(row.bytes for row in manifest.shards),
        "labels": {name: labels[name] for name in manifest.experts},
        "dropped": dropped(manifest).to_json(),
    }


def write(folder: str, manifest: Manifest) -> None:
    """Writes FOLDER/manifest.json."""
    values = {"format": FORMAT} | {
        field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest) if field.name != "shards"
    }
    lines = ",\n".join(f"    {json.dumps(dataclasses.asdict(row))}" for row in manifest.shards)  # one shard a line
    head = json.dumps(values | {"totals": totals(manifest)}, indent=2).removesuffix("\n}")
    storage.write(storage.join(folder, FILE), f'{head},\n  "shards": [\n{lines}\n  ]\n}}\n')


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
        reasons = "; ".join(dropped(manifest).lines())
        raise UserError(f"{folder}: not one sample could be used ({reasons or 'the source is empty'}).")
    _write_tfds_metadata(folder, manifest)
    write(folder, manifest)
    return manifest


def _write_tfds_metadata(folder: str, manifest: Manifest) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info

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
            features=features(manifest.experts),
            description="Photos with captions, questions and expert labels, written by prismer_jax.",
            disable_shuffling=True,
        )
        info.set_file_format("array_record")
        info.set_splits(tfds.core.splits.SplitDict([split]))
        info.write_to_directory(scratch)
        for file in pathlib.Path(scratch).iterdir():
            storage.write(storage.join(folder, file.name), file.read_bytes())


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what stands in a record."""
    installed = {}
    for name in ("prismer_jax", "tensorflow-datasets", "array_record", "pillow", "opencv-python-headless", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # OpenCV may be another of its four packages
            installed[name] = metadata.version(name)
    return installed
