"""Conversations about photos in the layout of the Cauldron and FineVision, as JSON lines or Parquet.

A sample has `images` (none, one or several: paths, encoded bytes, or {"bytes", "path"} as `datasets` stores them) and
`texts`, [{"user", "assistant"}, ...]; FineVision's also have ratings from 1 to 5 of each text. Samples stay in their
files until they are read.

Sources: HuggingFaceM4/the_cauldron and FineVision (columns); huggingface/nanoVLM, data/datasets.py (ratings).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import parquet, storage
from prismer_jax.files.offsets import Offsets

Example = dict[str, Any]
ENDS = (".jsonl", ".parquet")
RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
COLUMNS = ("images", "image", "texts", *(f"{name}_ratings" for name in RATINGS))  # that are read
NO_TURN = "no user and assistant"


def load(
    path: storage.PathLike | Sequence[storage.PathLike],
    *,
    images: storage.PathLike | None = None,
    limit: int | None = None,
    relevance: int = 1,
    image_correspondence: int = 1,
    visual_dependency: int = 1,
    formatting: int = 1,
    kind: type[Source] | None = None,
) -> Source:
    """Returns a source of examples with `id` (FILE/NUMBER), `image` (a list, which may be empty) and `turns`.

    Args:
      path: files of JSON lines or Parquet, or folders of them; of Parquet also where fsspec reaches, such as
        hf://datasets/USER/NAME: of each file its end, and the row groups and columns that are read, are fetched.
      images: the folder that paths of photos are relative to; by default that of their file.
      limit: take only so many samples, the first ones; what comes after them is not read.
      relevance, image_correspondence, visual_dependency, formatting: the least rating of a text; texts without a rating
        stay. A sample that keeps none is bad (reason: low ratings).
      kind: of the source, where samples are something else; see datasets/pairs.py.

    Raises:
      UserError: a file is missing or no such table, or its samples lack ratings that are asked for.
    """
    minima = dict(
        relevance=relevance,
        image_correspondence=image_correspondence,
        visual_dependency=visual_dependency,
        formatting=formatting,
    )
    kind = kind or Source
    tables: list[Any] = []
    several = [path] if isinstance(path, storage.PathLike) else path
    files = [file for one in several for file in parquet.files(one, ENDS)]
    for file in files:
        left = None if limit is None else limit - sum(map(len, tables))
        if left is None or left > 0:
            is_parquet = str(file).endswith(".parquet")
            tables.append(parquet.Table(file, left, kind.columns) if is_parquet else _Lines(file, left))
    source = kind(tables, _names(files), None if images is None else storage.on_disk(images), minima)
    if not len(source):
        raise UserError(f"{path}: has no samples. Check the path and limit.")
    for name, least in minima.items():
        if least > 1 and source.row(0).get(f"{name}_ratings") is None:
            raise UserError(f"{tables[0].path}: the first sample has no {name}_ratings. Leave {name} out.")
    return source


class Source:
    """Samples of several files: `len(source)`, `source[i]`.

    Attributes:
      made_of: what its examples depend on: files, their sizes and times, and settings.
      fingerprint: of remote files, a digest of that, so that none is read to tell whether they changed; else None.
      columns: those of Parquet that are read; None for all.
    """

    columns: tuple[str, ...] | None = COLUMNS

    def __init__(
        self, tables: Sequence[Any], names: Sequence[str], images: storage.PathLike | None, minima: Mapping[str, int]
    ) -> None:
        """Takes the files that are read, what their samples are called by, and what `load` says."""
        self._tables, self._names, self._images, self._minima = list(tables), names, images, dict(minima)
        self._offsets = Offsets(map(len, tables))
        files = [parquet.identity(table.path) for table in tables]
        self.made_of = json.dumps([files, images and os.path.abspath(images), self._minima])
        remote = any(storage.is_remote(table.path) for table in tables)
        self.fingerprint = hashlib.sha256(self.made_of.encode()).hexdigest()[:16] if remote else None

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> dict[str, Any]:
        """Returns a sample as its file has it."""
        return self._find(index)[1]

    def __getitem__(self, index: int) -> Example:
        where, name, row, photos = self.found(index)
        return {"id": name, "image": photos, "turns": self._turns(row, where)}

    def found(self, index: int) -> tuple[str, str, dict[str, Any], list[bytes | str]]:
        """Returns (what messages call it, FILE/NUMBER, the row, its photos) of a sample."""
        table, row, number = self._find(index)
        name = f"{self._names[self._offsets.find(index)[0]]}/{number}"
        folder = self.folder(index)
        photos = row.get("image") if row.get("images") is None else row["images"]
        photos = [] if photos is None else photos if isinstance(photos, list) else [photos]
        photos = [photo_of(photo, folder, f"{table.path}: photo of sample {number}") for photo in photos]
        return f"{table.path}: sample {number}", name, row, photos

    def folder(self, index: int) -> pathlib.Path | None:
        """Returns the folder that a sample's paths are relative to; None of a remote table, whose photos are inside."""
        if self._images is not None:
            return self._images
        path = self._tables[self._offsets.find(index)[0]].path
        return None if storage.is_remote(path) else pathlib.Path(path).parent

    def _find(self, index: int) -> tuple[Any, dict[str, Any], int]:
        number, inside = self._offsets.find(index)
        table = self._tables[number]
        return table, table.read(inside), inside

    def _turns(self, row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
        texts = row.get("texts")
        if not isinstance(texts, list) or not texts:
            raise BadSample(f"{where}: has no texts.", NO_TURN)
        turns = []
        for number, text in enumerate(texts):
            said = {role: text.get(role) for role in ("user", "assistant")} if isinstance(text, Mapping) else {}
            if not said or not all(isinstance(words, str) for words in said.values()):
                raise BadSample(f"{where}: text {number} has no user and assistant.", NO_TURN)
            if not any(_rating(row, name, number, where) < least for name, least in self._minima.items()):
                turns.append(said)
        if not turns:
            raise BadSample(f"{where}: no text has the ratings that are asked for.", "low ratings")
        return turns


def _rating(row: Mapping[str, Any], name: str, number: int, where: str) -> float:
    """Returns a text's rating; infinity where it has none; raises BadSample for what is no number."""
    ratings = row.get(f"{name}_ratings")
    if not isinstance(ratings, list) or number >= len(ratings) or ratings[number] is None:
        return np.inf
    if not isinstance(ratings[number], int | float):
        raise BadSample(f"{where}: the {name} rating of text {number} is {ratings[number]!r}, no number.", "no rating")
    return ratings[number]


def photo_of(photo: Any, folder: pathlib.Path | None, where: str) -> bytes | str:
    """Returns a photo's encoded bytes or path, of what `datasets` stores of it.

    Args:
      photo: bytes, a path, or {"bytes", "path"}, of which one may be null.
      folder: that paths are relative to; None for remote tables, whose photos are inside.
      where: what messages call it.

    Raises:
      BadSample: it is none of these.
    """
    if isinstance(photo, Mapping):
        data = photo.get("bytes")
        photo = photo.get("path") if data is None else data
        if isinstance(data, str):  # as JSON has them
            try:
                photo = base64.b64decode(data, validate=True)
            except binascii.Error:
                raise BadSample(f"{where}: its bytes are no base64.", "not an image") from None
    if isinstance(photo, str):
        if folder is None:
            raise BadSample(f"{where}: is the path {photo!r}; of remote files photos are read inside.", "missing photo")
        return str(folder / photo)
    if not isinstance(photo, bytes):
        raise BadSample(f"{where}: is {type(photo).__name__}, neither a path nor bytes.", "not an image")
    return photo


class _Lines:
    """A file of JSON lines, of which the beginnings of the lines are kept."""

    def __init__(self, path: pathlib.Path, limit: int | None) -> None:
        self.path, starts, position = path, [], 0
        with open(path, "rb") as file:
            while (limit is None or len(starts) < limit) and (line := file.readline()):
                if line.strip():
                    starts.append(position)
                position += len(line)
        self._starts = np.asarray(starts, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            if isinstance(row := json.loads(line), dict):
                return row
            why = f"is {type(row).__name__}, not an object"
        except (ValueError, RecursionError) as error:
            why = str(error)
        raise BadSample(f"{self.path}: sample {index}: {why}.", "damaged line")


def _names(files: Sequence[pathlib.Path | str]) -> list[str]:
    """Returns what the samples of each file are called by: its stem; its path below the folder of all, if stems repeat.

    A file that is there again has a number.
    """
    paths = [pathlib.PurePosixPath("/", str(f) if storage.is_remote(f) else os.path.abspath(f)) for f in files]
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    shared = os.path.commonpath([path.parent for path in paths])
    names = [str(path.relative_to(shared)) for path in paths]
    times = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}#{before + 1}" if before else name for name, before in zip(names, times, strict=True)]
