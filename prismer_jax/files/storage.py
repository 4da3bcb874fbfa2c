"""Files of data sets, on a local disk or wherever fsspec reaches (gs://, s3://, hf://, memory:// ...).

A path with '://' is remote. Small files are read and written whole; a shard is read where it lies if it can be (local
disks, and gs:// by array_record itself), and otherwise copied to a local cache when its first record is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import posixpath
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from prismer_jax.errors import UserError

NATIVE = ("gs://",)  # what array_record opens without a copy


def data_folder(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Where data sets lie that nobody has placed: `data_dir`, $PRISMER_DATA_DIR or ~/.cache/prismer_jax/data."""
    return pathlib.Path(data_dir or os.environ.get("PRISMER_DATA_DIR") or "~/.cache/prismer_jax/data").expanduser()


def is_remote(path: str | os.PathLike) -> bool:
    return "://" in os.fspath(path)


def plain(path: str | os.PathLike) -> str:
    """The path as text: file:// is a local path, ~ the home folder."""
    text = os.fspath(path)
    return (
        text if is_remote(text) and not text.startswith("file://") else os.path.expanduser(text.removeprefix("file://"))
    )


def join(folder: str, name: str) -> str:
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def make_folder(folder: str) -> None:
    """Makes a folder; object stores have none to make."""
    if not is_remote(folder):
        os.makedirs(folder, exist_ok=True)


def read(path: str) -> bytes:
    """The bytes of a file.

    Raises:
      FileNotFoundError: there is none.
      UserError: it cannot be read.
    """
    if not is_remote(path):
        return pathlib.Path(path).read_bytes()
    system, inner = _system(path)
    with _remote_errors(path):
        return system.cat_file(inner)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """A file to read piece by piece; raises as `read` does."""
    if not is_remote(path):
        with open(path, "rb") as file:
            yield file
        return
    system, inner = _system(path)
    with _remote_errors(path), system.open(inner, "rb") as file:
        yield file


def write(path: str, data: bytes) -> None:
    """Writes a file whole or not at all; it is on the disk, not in memory, when this returns."""
    if is_remote(path):
        system, inner = _system(path)
        with _remote_errors(path):
            system.pipe_file(inner, data)
        return
    with temporary(path) as name:
        with open(name, "wb") as file:
            file.write(data)
        publish(name, path)


def size(path: str) -> int | None:
    """The bytes that a file has; None where there is no file."""
    try:
        if not is_remote(path):
            return os.stat(path).st_size
        system, inner = _system(path)
        with _remote_errors(path):
            return int(system.info(inner)["size"])
    except FileNotFoundError:
        return None


def names(folder: str) -> list[str]:
    """The names of a folder's files, sorted; none if there is no folder."""
    try:
        if not is_remote(folder):
            return sorted(os.listdir(folder))
        system, inner = _system(folder)
        with _remote_errors(folder):
            return sorted(posixpath.basename(name.rstrip("/")) for name in system.ls(inner, detail=False))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def temporary(path: str) -> Iterator[str]:
    """A local name to write to before `publish`: beside a local path; gone afterwards, whatever happens."""
    folder, name = os.path.split(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="prismer_jax.") as scratch:
            yield os.path.join(scratch, name)
        return
    name = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")  # processes of two hosts may have one id
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def publish(local: str, path: str) -> None:
    """Moves a finished local file to its path: on local disks in one step, after its bytes are on the disk."""
    if is_remote(path):
        system, inner = _system(path)
        with _remote_errors(path):
            system.put_file(local, inner)
        return
    _sync(local)
    os.replace(local, path)
    _sync(os.path.dirname(path) or ".")  # the folder's entry, too, must survive a loss of power


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def local(path: str, size: int) -> str:
    """A path that array_record opens: the same, or that of a copy in the cache, made now if it is not there.

    Args:
      path: of a shard.
      size: bytes that it has; a copy of another size is made again.
    """
    if not is_remote(path) or path.startswith(NATIVE):
        return path
    folder = data_folder() / "remote" / hashlib.sha256(posixpath.dirname(path).encode()).hexdigest()[:16]
    copy = folder / posixpath.basename(path)
    if not copy.exists() or copy.stat().st_size != size:
        folder.mkdir(parents=True, exist_ok=True)
        system, inner = _system(path)
        with temporary(str(copy)) as name, _remote_errors(path):
            system.get_file(inner, name)
            publish(name, str(copy))
    return str(copy)


def _system(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # the protocol's package is not installed; no such protocol
        raise UserError(f"{path}: cannot be reached ({error}).") from None


@contextlib.contextmanager
def _remote_errors(path: str) -> Iterator[None]:
    """What a store's client raises, as one line; that a file is missing stays what it is."""
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # each client has its own
        raise UserError(f"{path}: cannot be read or written ({type(error).__name__}: {error}).") from None
