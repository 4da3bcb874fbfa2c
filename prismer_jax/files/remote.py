"""Files wherever fsspec reaches: gs://, s3://, hf://, memory:// ... What storage.py does for paths with '://'."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pathlib
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import fsspec

from prismer_jax.errors import UserError
from prismer_jax.files import storage

DELETIONS = 16  # at once


def read(path: str) -> bytes:
    """Returns the bytes of a file; raises as all here FileNotFoundError, or UserError for whatever else goes wrong."""
    with _file(path) as (system, inner):
        return system.cat_file(inner)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Yields a file to read piece by piece."""
    with _file(path) as (system, inner), system.open(inner, "rb") as file:
        yield file


def size(path: str) -> int:
    """Returns the bytes that a file has now: another machine may have made a shard again."""
    with _file(path) as (system, inner):
        system.invalidate_cache(inner)
        return int(system.info(inner)["size"])


def names(folder: str) -> list[str]:
    """Returns the names of a folder's files as they are now: others write there, too."""
    with _file(folder) as (system, inner):
        system.invalidate_cache(inner)
        return [posixpath.basename(name.rstrip("/")) for name in system.ls(inner, detail=False)]


def find(folder: str) -> dict[str, int]:
    """Returns the bytes of each file below a folder, or of a file itself, by its path, sorted."""
    with _file(folder) as (system, inner):
        system.invalidate_cache(inner)
        details = system.find(inner, detail=True)
        return {str(system.unstrip_protocol(name)): int(details[name]["size"]) for name in sorted(details)}


@contextlib.contextmanager
def open_ranges(path: str) -> Iterator[BinaryIO]:
    """Yields a file of which nothing is fetched but the bytes that are read."""
    with _file(path) as (system, inner), system.open(inner, "rb", cache_type="none") as file:
        yield file


def write(path: str, data: bytes) -> None:
    """Writes a file; a store has it whole or not at all."""
    with _file(path, writes=True) as (system, inner):
        system.pipe_file(inner, data)


def put(name: str, path: str) -> None:
    """Copies a local file to a store."""
    with _file(path, writes=True) as (system, inner):
        system.put_file(name, inner)


def delete(path: str) -> None:
    """Deletes a file."""
    with _file(path) as (system, inner):
        system.rm_file(inner)


def delete_folder(folder: str, first: str = "", keep: str = "") -> None:
    """Deletes all files below a folder, if there are any: the one named `first` before others, `keep` not at all."""

    def away(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            delete(path)

    paths = set(find(folder)) - {posixpath.join(folder, keep)}
    if (whole := posixpath.join(folder, first)) in paths:
        away(whole)
    with ThreadPoolExecutor(DELETIONS) as pool:  # a store takes its time with each
        list(pool.map(away, paths - {whole}))


def bucket(path: str) -> pathlib.Path:
    """Returns a path of gs:// that has the methods of pathlib, as Orbax takes it."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path}: buckets need a package that is not installed: pip install gcsfs.")
    from etils import epath

    return epath.Path(path.rstrip("/"))


def copies(folder: str) -> pathlib.Path:
    """Returns a folder of the cache with copies of the files that lie in a remote one, but of none below it."""
    with _file(folder) as (system, inner):
        system.invalidate_cache(inner)
        files = [file for file in system.ls(inner, detail=True) if file["type"] == "file"]
        marks = sorted(f"{file['name']} {file['size']} {system.checksum(file['name'])}" for file in files)
        home = storage.data_folder() / "remote" / hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
        for file in files:
            copy = home / posixpath.basename(file["name"])
            if not copy.exists():
                home.mkdir(parents=True, exist_ok=True)
                with storage.replacing(copy) as name:
                    system.get_file(file["name"], name)
    return home


def cached(path: str, size: int, sha256: str) -> str:
    """Returns the path of a local copy of a file; see `storage.local`."""
    folder = storage.data_folder() / "remote" / hashlib.sha256(posixpath.dirname(path).encode()).hexdigest()[:16]
    copy = folder / f"{posixpath.basename(path)}.{sha256[:16]}"
    if not copy.exists() or copy.stat().st_size != size:
        folder.mkdir(parents=True, exist_ok=True)
        with storage.replacing(copy) as name, _file(path) as (system, inner):
            system.get_file(inner, name)
        for other in folder.glob(f"{posixpath.basename(path)}*"):
            if other != copy:
                other.unlink(missing_ok=True)
    return str(copy)


@contextlib.contextmanager
def _file(path: str, writes: bool = False) -> Iterator[tuple[Any, str]]:
    """Yields (file system, path in it); what its client raises becomes one line, but that a file is missing."""
    try:
        system, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # the protocol's package is not installed; no such protocol
        raise UserError(f"{path}: cannot be reached ({error}).") from None
    try:
        yield system, inner
    except UserError:
        raise
    except FileNotFoundError as error:
        if writes and error.filename is None:  # no local file
            raise UserError(f"{path}: cannot be written: there is no such bucket.") from None
        raise
    except Exception as error:  # each client has its own
        raise UserError(f"{path}: cannot be read or written ({type(error).__name__}: {error}).") from None
