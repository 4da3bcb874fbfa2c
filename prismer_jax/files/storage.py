"""Files of data sets, on a local disk or, for paths with '://', wherever fsspec reaches: there remote.py does the work.

Small files are read and written whole; a shard is read where it lies if it can be (local disks, and gs:// by
array_record itself), and otherwise copied to a local cache when its first record is asked for. Whatever is written
appears whole or not at all: this is the one place that makes sure of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import posixpath
import re
import secrets
import tempfile
import types
from collections.abc import Iterator
from typing import Any, BinaryIO

from prismer_jax.errors import UserError

PathLike = str | os.PathLike  # of a file or a folder
NATIVE = ("gs://",)  # what array_record and Orbax open without a copy
TEMPORARY = ".tmp"  # the end of the names of files that are being written


def data_folder(data_dir: PathLike | None = None) -> pathlib.Path:
    """Returns the default folder of data sets: `data_dir`, $PRISMER_DATA_DIR or ~/.cache/prismer_jax/data."""
    return pathlib.Path(data_dir or os.environ.get("PRISMER_DATA_DIR") or "~/.cache/prismer_jax/data").expanduser()


def is_remote(path: PathLike) -> bool:
    return "://" in os.fspath(path)


def plain(path: PathLike) -> str:
    """Returns the path as text: file:// is a local path, ~ the home folder."""
    text = os.fspath(path).removeprefix("file://")
    return text if is_remote(text) else os.path.expanduser(text)


def on_disk(path: PathLike) -> pathlib.Path:
    """Returns a path that can only be on a disk: the type of such flags, and of such values of configs.

    Raises:
      UserError: it is remote, also where pathlib has made gs:/ of gs://.
    """
    text = re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", plain(path))
    if is_remote(text):
        raise UserError(
            f"{text}: is remote, where only a path on a disk will do. Copy it to one, or mount the store as a folder."
        )
    return pathlib.Path(text)


def folder(path: PathLike) -> pathlib.Path:
    """Returns the path of a folder of runs or models, absolute: on a disk, or in a bucket, gs://.

    Raises:
      UserError: it is in another store, or the package for buckets is not installed.
    """
    if bucket := re.match(r"gs:/+(.+)", plain(path)):
        return remote().bucket(f"gs://{bucket[1]}")
    return on_disk(path).absolute()


def join(folder: str, name: str) -> str:
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def make_folder(folder: str) -> None:
    """Makes a folder; object stores have none to make."""
    if not is_remote(folder):
        os.makedirs(folder, exist_ok=True)


def read(path: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
      FileNotFoundError: there is none.
      UserError: it cannot be read.
    """
    if not is_remote(path):
        return pathlib.Path(path).read_bytes()
    return remote().read(path)


def open_file(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """A file to read piece by piece; raises as `read` does."""
    return remote().open_file(path) if is_remote(path) else open(path, "rb")


def size(path: str) -> int | None:
    """Returns the bytes that a file has; None where there is no file."""
    try:
        return remote().size(path) if is_remote(path) else os.stat(path).st_size
    except FileNotFoundError:
        return None


def names(folder: str) -> list[str]:
    """Returns the names of a folder's files, sorted; none if there is no folder."""
    try:
        return sorted(remote().names(folder) if is_remote(folder) else os.listdir(folder))
    except FileNotFoundError:
        return []


def write(path: PathLike, data: bytes | str) -> None:
    """Writes a file, text as UTF-8, whole or not at all; it is on the disk, not in memory, when this returns."""
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        return remote().write(os.fspath(path), data)
    with replacing(path) as name, open(name, "wb") as file:
        file.write(data)


def write_json(path: PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes a file of JSON as `write` does, with a newline at its end."""
    write(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: PathLike, default: Any = None) -> Any:
    """Returns what a local file of JSON holds, or `default` where there is none, or a damaged one."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return default


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[str]:
    """Yields a local name to write to; the file takes the place of `path` when the block ends without an error.

    Raises:
      OSError: the file cannot be written, with `path` as its file name.
      UserError: a remote file cannot be written.
    """
    with temporary(path) as name:
        try:
            yield name
            publish(name, path)
        except OSError as error:
            if error.filename in (None, name):  # a full disk; users know nothing of the temporary file
                error.filename = os.fspath(path)
            raise


@contextlib.contextmanager
def temporary(path: PathLike) -> Iterator[str]:
    """Yields a local name to write to before `publish`, beside a local path; the file is removed at the end."""
    folder, name = os.path.split(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="prismer_jax.") as scratch:
            yield os.path.join(scratch, name)
        return
    # No id of the process, which one of another host may have, and little of the name, which may be as long as can be.
    name = os.path.join(folder, f".{name[:16]}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def publish(name: PathLike, path: PathLike) -> None:
    """Moves a finished local file to its path: on local disks in one step, after its bytes are on the disk."""
    if is_remote(path):
        return remote().put(os.fspath(name), os.fspath(path))
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):  # such as /dev/stdout
        raise UserError(f"{path}: is no file that can be written. Name another.")
    _sync(name)
    os.replace(name, path)
    _sync(os.path.dirname(path) or ".")  # the folder's entry, too, must survive a loss of power


def _sync(path: PathLike) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def local(path: str, size: int, sha256: str) -> str:
    """Returns a path that array_record opens: the same, or that of a copy in the cache, made now if it is not there.

    Args:
      path: of a shard.
      size, sha256: of its bytes. A copy of others, of a data set that was built again at the same place, is replaced.
    """
    return remote().cached(path, size, sha256) if is_remote(path) and not path.startswith(NATIVE) else path


def remote() -> types.ModuleType:
    """Returns the module for paths with '://', which is imported when there is one."""
    return importlib.import_module("prismer_jax.files.remote")
