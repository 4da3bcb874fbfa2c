"""The manifest of a data set: which shards it has, what is in them, and what they were made from and with.

A row describes one shard. Readers go by FOLDER/manifest.json, which metadata.py writes when all shards are whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage

FILE, PLAN = "manifest.json", "plan.json"  # of a finished data set; of one that is begun
FORMAT = 1  # of the manifest and of the records: readers refuse others


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


def parse_row(values: Mapping[str, Any]) -> Row:
    """Returns the row of `dataclasses.asdict`; raises TypeError or ValueError for anything else."""
    shard = Row(**values)
    for numbers in (shard.captions, shard.questions):
        if not isinstance(numbers, int) and len(numbers) != shard.records:
            raise ValueError(f"{shard.file}: {len(numbers)} numbers for {shard.records} records")
    return shard


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


def read(folder: str) -> Manifest | None:
    """Returns the manifest of a data set; None where the folder has none.

    Raises:
      UserError: it is damaged, or of another format.
    """
    path = storage.join(folder, FILE)
    try:
        values = json.loads(storage.read(path))
        version = values.pop("format", None) if isinstance(values, dict) else None
        if version != FORMAT:
            raise UserError(f"{path}: has format {version}; this version reads {FORMAT}. Build it again.")
        values.pop("totals")
        rows = tuple(map(parse_row, values.pop("shards")))
        return Manifest(experts=tuple(values.pop("experts")), shards=rows, **values)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}). Delete it and build the data set again.") from None
