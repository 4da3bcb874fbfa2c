"""The folders of steps and exports on a disk: which are whole, which a power cut tore later, how one is replaced.

A kill of the process leaves no half of a checkpoint (see Checkpointer), but a file system that loses its power may hold
a folder with its final name and files without their content. So the sizes of a finished one's files are noted.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

from prismer_jax.checkpoint import layout
from prismer_jax.files import storage

COMMITTED = "_CHECKPOINT_METADATA"  # in a step: Orbax writes it before the rename
SIZES = "sizes.json"  # beside the steps: {step: {file: bytes}}
_TRASH = ".deleting-"


def complete(directory: pathlib.Path) -> list[int]:
    """Returns the steps that are there, and whole."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit() and is_step(path)]


def is_step(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a step. Orbax gives it its name when all is there."""
    return (folder / COMMITTED).exists()


def sweep(directory: pathlib.Path) -> None:
    """Deletes what a killed process left behind."""
    for path in directory.iterdir():
        if ".orbax-checkpoint-tmp" in path.name or path.name.startswith(_TRASH):
            shutil.rmtree(path, ignore_errors=True)


def delete(directory: pathlib.Path, step: int) -> None:
    """Deletes a step; a kill leaves no half of it."""
    trash = directory / f"{_TRASH}{step}"
    os.rename(directory / str(step), trash)
    shutil.rmtree(trash)


def note(directory: pathlib.Path, steps: Iterable[int]) -> None:
    """Writes the sizes of the files of these steps, keeping those that are there; steps left out are forgotten."""
    listed, sizes = layout.read_json(directory / SIZES), {}
    for step in (directory / str(number) for number in steps):  # in which others may put files for a while
        files = (path for path in [step / COMMITTED, *(step / layout.ITEM).rglob("*")] if path.is_file())
        sizes[step.name] = listed.get(step.name) or {str(p.relative_to(step)): p.stat().st_size for p in files}
    storage.write_json(directory / SIZES, sizes, indent=None)


def what_is_torn(directory: pathlib.Path, step: int) -> str:
    """Returns which file of a step is missing or has another size than noted; '' where all are as they were."""
    for name, size in layout.read_json(directory / SIZES).get(str(step), {}).items():
        path = directory / str(step) / name
        if (now := path.stat().st_size if path.exists() else None) != size:
            return f"{name} is missing" if now is None else f"{name} has {now} bytes instead of {size}"
    return ""


def is_free(folder: pathlib.Path) -> bool:
    """Returns whether nothing is lost where an export takes the place of a folder."""
    return folder.is_dir() and not any(folder.iterdir())


@contextlib.contextmanager
def replacing(final: pathlib.Path, main: bool) -> Iterator[pathlib.Path]:
    """Yields a folder to write to, which replaces `final`, or what it links to, in the end; the `main` process does."""
    final = final.resolve()
    new, old = beside(final, "new"), beside(final, "old")
    if main:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    try:
        yield new
    except (OSError, ValueError):
        if main:
            shutil.rmtree(new, ignore_errors=True)
        raise
    if main:
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)  # killed here, `reading.find` knows where to look
        os.rename(new, final)
        shutil.rmtree(old, ignore_errors=True)


def beside(folder: pathlib.Path, what: str) -> pathlib.Path:
    """Returns the name of the 'new' folder, or the 'old' one, while it is replaced."""
    return (folder := folder.resolve()).with_name(f".{folder.name}.{what}")
