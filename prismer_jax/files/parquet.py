"""Tables in Parquet files, on disks or where fsspec reaches (hf://datasets/USER/NAME), read by row groups.

pyarrow, which reads them, comes with the extra `data`, and is imported when a table is opened. Of a remote file its end
is fetched, and of the row groups that are read the columns that are asked for.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage, versions
from prismer_jax.files.offsets import Offsets

Row = dict[str, Any]

KEPT_BYTES = 1 << 29  # of row groups, in a process: some writers put a whole file into one
_kept: dict[Any, Any] = {}  # arguments of _read -> row group, the last used last
_lock = threading.Lock()  # loaders read in threads
_MAGIC = re.compile(r"[*?[]")  # of patterns


class Table:
    """A Parquet file: `len(table)`, `table.read(index)`, of which the last row groups that were read stay in memory.

    Attributes:
      path: the file.
      columns: the names of all its columns.
    """

    def __init__(self, path: storage.PathLike, limit: int | None = None, wanted: Sequence[str] | None = None) -> None:
        """Args:
        path: a file.
        limit: so many rows, the first ones.
        wanted: the columns that `read` returns, where the file has them; None for all.

        Raises:
          UserError: it cannot be read, or pyarrow is missing.
        """
        self.path, self._version = path, json.dumps(identity(path))
        self._wanted = None if wanted is None else tuple(wanted)
        metadata = _metadata(str(path), self._version)
        self._groups = range(metadata.num_row_groups)
        self._offsets = Offsets(metadata.row_group(number).num_rows for number in self._groups)
        self._length = len(self._offsets) if limit is None else min(len(self._offsets), limit)
        self.columns: list[str] = self.schema.names

    @property
    def schema(self) -> Any:
        """Returns the columns' names and types, pyarrow's schema."""
        return _metadata(str(self.path), self._version).schema.to_arrow_schema()

    def __len__(self) -> int:
        return self._length

    def photo_columns(self) -> list[str]:
        """Returns the columns that hold photos: bytes, structs of bytes and path, as `datasets` has them, or lists."""
        from pyarrow import types

        def holds(kind: Any) -> bool:
            if types.is_struct(kind):
                return kind.get_field_index("bytes") >= 0
            return types.is_binary(kind) or types.is_large_binary(kind)

        return self._columns_of(holds)

    def text_columns(self) -> list[str]:
        """Returns the columns that hold texts, or lists of them."""
        from pyarrow import types

        return self._columns_of(lambda kind: types.is_string(kind) or types.is_large_string(kind))

    def _columns_of(self, holds: Callable[[Any], bool]) -> list[str]:
        """Returns the columns whose type, or that of the items in their lists, is of a kind."""
        from pyarrow import types

        items = {
            f.name: f.type.value_type if types.is_list(f.type) or types.is_large_list(f.type) else f.type
            for f in self.schema
        }
        return [name for name, kind in items.items() if holds(kind)]

    def read(self, index: int) -> Row:
        """Returns a row.

        Raises:
          BadSample: its row group is damaged.
        """
        group, row = self._offsets.find(index)
        return self._kept(group).slice(row, 1).to_pylist()[0]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yields all rows, with these columns alone; one row group at a time is in memory.

        Raises:
          BadSample: a row group is damaged.
        """
        left = self._length
        for number in self._groups:
            if left > 0:
                group = _read(str(self.path), self._version, number, tuple(columns)).slice(0, left)
                left -= group.num_rows
                yield from group.to_pylist()

    def _kept(self, number: int) -> Any:
        columns = tuple(name for name in self.columns if self._wanted is None or name in self._wanted)
        return _group(str(self.path), self._version, number, columns)


def read(path: storage.PathLike, columns: Sequence[str] | None = None) -> list[Row]:
    """Returns all rows of a small table.

    Raises:
      UserError: it cannot be read, or pyarrow is missing.
    """
    table = Table(path)
    try:
        return list(table.rows(table.columns if columns is None else columns))
    except BadSample as error:
        raise UserError(str(error)) from None


def identity(path: storage.PathLike) -> list[Any]:
    """Returns what tells a file from another, or from what it was: its place, its size, and on a disk its time."""
    if storage.is_remote(path):
        return [str(path), storage.size(str(path))]
    return [os.path.realpath(path), *versions.version(path)]


def files(path: storage.PathLike, ends: Sequence[str] = (".parquet",)) -> list[pathlib.Path | str]:
    """Returns a file, the files of these ends in a folder, or those of a pattern ('data/train-*.parquet').

    Of what is remote only files that end in .parquet are returned.

    Raises:
      UserError: there are none.
    """
    if storage.is_remote(storage.plain(path)):
        return _remote_files(str(path))
    if _MAGIC.search(str(path)) and (matching := sorted(glob.glob(storage.plain(path), recursive=True))):
        return [pathlib.Path(name) for name in matching]
    one, kinds = storage.on_disk(path), "JSON lines (.jsonl) or Parquet (.parquet)" if len(ends) > 1 else "Parquet"
    inside = [p for p in _below(one) if p.suffix in ends and p.is_file()] if one.is_dir() else [one]
    if not inside or not all(p.is_file() and p.suffix in ends for p in inside):
        what = "has no file of" if one.is_dir() else "is no file of" if one.exists() else "no such file; it takes"
        raise UserError(f"{one}: {what} {kinds}.")
    return inside


def _below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns what lies in a folder and those below it, linked ones too, each folder once; sorted."""
    paths, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(folders) if (real := os.path.realpath(here)) not in seen else []
        paths += [] if real in seen else [pathlib.Path(here, name) for name in files]
        seen.add(real)
    return sorted(paths)


def _remote_files(path: str) -> list[str]:
    pattern = _MAGIC.search(path)
    folder = path[: pattern.start()].rpartition("/")[0] if pattern else path
    try:
        paths = [name for name in storage.remote().find(folder) if name.endswith(".parquet")]
        if pattern:  # behind the folder, for stores spell what is before it in their own ways
            paths = [name for name in paths if fnmatch.fnmatchcase(name, f"*{path[len(folder) :]}")]
    except FileNotFoundError:
        paths = []
    if not paths:
        raise UserError(f"{path}: has no Parquet file (.parquet), the only kind that is read where it lies.")
    return paths


def _group(*key: Any) -> Any:
    """Returns what `_read` does; the last row groups stay in memory, one at least, and no more than KEPT_BYTES."""
    with _lock:
        group = _kept.pop(key, None)
    group = _read(*key) if group is None else group
    with _lock:
        _kept[key] = group
        while len(_kept) > 1 and sum(one.nbytes for one in _kept.values()) > KEPT_BYTES:
            del _kept[next(iter(_kept))]
    return group


def _read(path: str, version: str, number: int, columns: tuple[str, ...]) -> Any:
    metadata = _metadata(path, version)
    try:
        with _opened(path) as file:
            return _library(path).ParquetFile(file, metadata=metadata).read_row_group(number, columns=list(columns))
    except (OSError, ValueError, NotImplementedError, UserError) as error:
        raise BadSample(f"{path}: cannot be read ({error}).", "damaged Parquet file") from None


@functools.lru_cache(maxsize=4096)
def _metadata(path: str, version: str) -> Any:
    try:
        with _opened(path) as file:
            return _library(path).ParquetFile(file).metadata
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Fetch it again.") from None


def _opened(path: str) -> Any:
    return storage.remote().open_ranges(path) if storage.is_remote(path) else open(path, "rb")


def _library(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: pip install 'prismer_jax[data]' reads Parquet.") from None
    return parquet
