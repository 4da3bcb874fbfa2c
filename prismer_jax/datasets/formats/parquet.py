"""Photos with captions or questions in Parquet, as Hugging Face's `datasets` writes them, on a disk or on the Hub.

A row is an entry of a list (formats/entries.py: `caption`, `question` and `answer`, `conversations` ...) whose photo is
inside, a struct of bytes and path, or bytes alone. Its label files lie, and it is called, as if the table were a folder
of its photos: TABLE/000000012.

Source: huggingface/datasets, features/image.py (the struct).
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from prismer_jax.datasets import captions, label_names
from prismer_jax.datasets.conversations import photo_of
from prismer_jax.datasets.formats import conversations, row
from prismer_jax.datasets.formats.entries import LIST_KEYS, ORIGIN, READ, rows_of, unread_reason
from prismer_jax.datasets.formats.reading import PHOTO_KEYS
from prismer_jax.datasets.lists.source import Source
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import parquet, storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.offsets import Offsets
from prismer_jax.labels import EXPERTS, select

_ASKING = ("question", *LIST_KEYS)
_SAYING = ("class_name", *row.CAPTION_KEYS)
_TELLING = frozenset((*_SAYING, *row.ANSWER_KEYS, *LIST_KEYS, *conversations.KEYS))


def load(
    path: storage.PathLike | Sequence[storage.PathLike],
    *,
    labels: storage.PathLike | None = None,
    task: Literal["caption", "question", "all"] | None = None,
    source: str | None = None,
    experts: str | Sequence[str] = tuple(EXPERTS),
    limit: int | None = None,
) -> Source:
    """Returns a source of the photos in tables; a row group is read when one of its photos is.

    Args:
      path: files, folders of them, or patterns, also where fsspec reaches: hf://datasets/USER/NAME/data/train-*. A file
        that is given twice is read once.
      labels: the folder of label files: `labels/<expert>/TABLE/000000012.png`; or 'DIR/{expert}/{dataset}'.
      task: as in lists.load; None is 'question' where a column asks, else 'caption'. For 'question' the columns of
        texts are read at once.
      source: what the data set is called; by default as the first table.
      experts: whose label files are looked for.
      limit: take only so many photos, or questions, the first ones.

    Photos in their order are read fast; for training in a random one tools.build_dataset makes record files of them.

    Raises:
      UserError: a file is missing or damaged, has no column of photos, or none that says what `task` needs.
    """
    labels = label_names.folder(labels)
    several = [path] if isinstance(path, storage.PathLike) else path
    tables: dict[str, Any] = {}  # by the file, however it is spelled
    for file in (file for one in several for file in parquet.files(one)):
        tables.setdefault(str(file) if storage.is_remote(file) else os.path.realpath(file), file)
    photos = TablePhotos(list(tables.values()), source, None if task == "question" else limit)
    if not len(photos):
        raise UserError(f"{several[0]}: has no rows. Check the path and limit.")
    if task is None and photos.names(_ASKING):  # of which the first rows may have none
        return load(path, labels=labels, task="question", source=source, experts=experts, limit=limit)
    task = task or "caption"
    needed = {"caption": (*_SAYING, *conversations.KEYS), "question": (*_ASKING, *conversations.KEYS)}
    if task in needed and not photos.names(needed[task]):
        raise UserError(
            f"{photos.tables[0].path}: has no column for the task {task!r}, such as {needed[task][0]!r} or "
            f"{needed[task][1]!r}; its columns are {', '.join(photos.tables[0].columns)}."
        )
    photos.unread.warn(several[0])
    return Source(photos, task, labels, select(experts), photos.unread, limit)


class TablePhotos(Sequence[dict[str, Any]]):
    """The photos of tables with what is said of them, as lists.Source wants them.

    Attributes:
      tables: their files.
      unread: counts the rows of columns of texts that are not read, in tables that say nothing in those that are.
    """

    def __init__(self, files: Sequence[pathlib.Path | str], source: str | None, limit: int | None) -> None:
        """Args:
        files: the tables.
        source: what the data set is called.
        limit: so many photos, the first ones; tables behind them are not opened.

        Raises:
          UserError: a table has no column of photos.
        """
        self.tables: list[parquet.Table] = []
        self.unread = Dropped()
        self._columns: list[str] = []  # of the photos in each
        for file in files:
            left = None if limit is None else limit - sum(map(len, self.tables))
            if left is None or left > 0:
                self.tables.append(parquet.Table(file, left))
                self._columns.append(_photo_column(self.tables[-1]))
                for name in _unread_texts(self.tables[-1]):
                    self.unread.add(unread_reason(name), str(file), len(self.tables[-1]))
        self._offsets = Offsets(map(len, self.tables))
        paths = [pathlib.PurePosixPath("/", str(f) if storage.is_remote(f) else os.path.abspath(f)) for f in files]
        shared = os.path.commonpath([path.parent for path in paths])
        self._stems = [str(path.relative_to(shared).with_suffix("")) for path in paths]
        self._source = source or paths[0].stem

    def names(self, columns: Sequence[str]) -> list[str]:
        """Returns those of the columns that the first table has."""
        return [name for name in columns if name in self.tables[0].columns]

    @property
    def fingerprint(self) -> str:
        """Returns a digest of which tables these are, of what sizes and times; see data_seen.py."""
        what = json.dumps([parquet.identity(table.path) for table in self.tables])
        return hashlib.sha256(what.encode()).hexdigest()

    @property
    def questions(self) -> list[int]:
        """Returns how many questions each photo has; the columns of texts are read for it, and no photo."""
        counts = []
        for table, column in zip(self.tables, self._columns, strict=True):
            for number, entry in enumerate(table.rows([name for name in table.columns if name != column])):
                counts.append(len(_said(entry, f"{table.path}: row {number}")["questions"]))
        return counts

    def __len__(self) -> int:
        return len(self._offsets)

    def name(self, number: int) -> str:
        """Returns what the label files of a photo are called; nothing is read."""
        table, inside = self._offsets.find(number)
        return f"{self._stems[table]}/{inside:09d}"

    def __getitem__(self, number: int) -> dict[str, Any]:
        which, inside = self._offsets.find(number)
        table, column, name = self.tables[which], self._columns[which], self.name(number)
        where = f"{table.path}: row {inside}"
        entry = table.read(inside)
        photo = entry.pop(column)
        if isinstance(photo, list) and len(photo) == 1:
            (photo,) = photo
        if photo is None:
            raise BadSample(f"{where}: has no photo.", "row without photo")
        folder = None if storage.is_remote(table.path) else pathlib.Path(table.path).parent
        image = photo_of(photo, folder, where)
        return {"id": name, "name": name, "image": image, "source": self._source, **_said(entry, where)}


def _said(entry: row.Entry, where: str) -> dict[str, Any]:
    """Returns what a row says of its photo: `captions`, `questions`, TEXTS, and `left_out`, what cannot be used."""
    dropped, texts, questions = Dropped(), [], []
    said: dict[str, Any] = {}
    for one in row.each([{**entry, "image": where}], rows_of, dropped):
        said |= one.texts
        captioned = captions.texts(one.captions)
        texts += [text for text in captioned.texts if text not in texts]
        if captioned.lost:
            dropped.add(captioned.lost, where)
        if one.question is not None:
            questions.append(one.question)
    left_out = {"left_out": [(reason, where) for reason in dropped.counts]} if dropped else {}
    return {**said, "captions": texts, "questions": questions, **left_out}


def _unread_texts(table: parquet.Table) -> list[str]:
    """Returns the columns of texts that are not read, by the table's schema alone; none beside what says something."""
    if not _TELLING.isdisjoint(table.columns):
        return []
    # A webdataset that `datasets` has read has __key__ and __url__ beside its jpg and txt.
    return [name for name in table.text_columns() if name not in READ | ORIGIN and not name.startswith("__")]


def _photo_column(table: parquet.Table) -> str:
    columns = table.photo_columns()
    if not columns:
        raise UserError(
            f"{table.path}: has no column of photos (bytes, or a struct of bytes and path as `datasets` writes); its "
            f"columns are {', '.join(table.columns)}. If they name files, it is a --list."
        )
    return next((name for name in PHOTO_KEYS if name in columns), columns[0])
