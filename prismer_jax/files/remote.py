"""Files wherever fsspec reaches: gs://, s3://, hf://, memory:// ... What storage.py does for paths with '://'."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from prismer_jax.errors import UserError


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
    """Returns the bytes that a file has."""
    with _file(path) as (system, inner):
        return int(system.info(inner)["size"])


def names(folder: str) -> list[str]:
    """Returns the names of a folder's files."""
    with _file(folder) as (system, inner):
        return [posixpath.basename(name.rstrip("/")) for name in system.ls(inner, detail=False)]


def write(path: str, data: bytes) -> None:
    """Writes a file; a store has it whole or not at all."""
    with _file(path) as (system, inner):
        system.pipe_file(inner, data)


def put(name: str, path: str) -> None:
    """Copies a local file to a store."""
    with _file(path) as (system, inner):
        system.put_file(name, inner)


def get(path: str, name: str) -> None:
    """Copies a file of a store to a local one."""
    with _file(path) as (system, inner):
        system.get_file(inner, name)


@contextlib.contextmanager
def _file(path: str) -> Iterator[tuple[Any, str]]:
    """Yields (file system, path in it); what its client raises becomes one line, but that a file is missing."""
    try:
        system, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # the protocol's package is not installed; no such protocol
        raise UserError(f"{path}: cannot be reached ({error}).") from None
    try:
        yield system, inner
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # each client has its own
        raise UserError(f"{path}: cannot be read or written ({type(error).__name__}: {error}).") from None
