"""The folders of steps and exports in a bucket, gs://: what disk.py does for those on a disk.

A bucket has no folders that could be renamed: Orbax writes a step under its own name and adds a file when all is there
(its atomicity module). Each object is whole or absent, so that no sizes are noted.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator

from prismer_jax.checkpoint import layout
from prismer_jax.files import remote, storage

COMMITTED = "commit_success.txt"  # as Orbax calls it
_HALF = ".writing"  # in the folder of an export which is not whole


def complete(directory: pathlib.Path) -> list[int]:
    """Returns the steps that are there, and whole."""
    return [step for step in _steps(directory) if is_step(directory / str(step))]


def is_step(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a step, with the file that Orbax adds when all is there, as it is now."""
    return COMMITTED in storage.names(os.fspath(folder))


def sweep(directory: pathlib.Path) -> None:
    """Deletes what a killed process left behind: it would be in the way of the same step."""
    for step in set(_steps(directory)) - set(complete(directory)):
        remote.delete_folder(os.fspath(directory / str(step)))


def delete(directory: pathlib.Path, step: int) -> None:
    """Deletes a step; a kill leaves a half that is no checkpoint."""
    remote.delete_folder(os.fspath(directory / str(step)), first=COMMITTED)


def note(directory: pathlib.Path, steps: Iterable[int]) -> None:
    """Does nothing: a bucket's files are whole or absent."""


def what_is_torn(directory: pathlib.Path, step: int) -> str:
    """Returns '': what is in a bucket stays as it is."""
    return ""


def is_free(folder: pathlib.Path) -> bool:
    """Returns whether nothing is lost where an export takes the place of a folder: another was killed in it."""
    return _HALF in storage.names(os.fspath(folder))


@contextlib.contextmanager
def replacing(final: pathlib.Path, main: bool) -> Iterator[pathlib.Path]:
    """Yields `final` to write an export to, emptied before by the `main` process; one that is killed leaves none."""
    half = os.fspath(final / _HALF)
    if main:
        storage.write(half, b"")
        remote.delete_folder(os.fspath(final), first=layout.DESCRIPTION, keep=_HALF)
    yield final
    if main:
        remote.delete(half)


def _steps(directory: pathlib.Path) -> list[int]:
    return [int(name) for name in storage.names(os.fspath(directory)) if name.isdigit()]
