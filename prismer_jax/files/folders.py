"""Folders that appear when they are full, and what is left in folders by processes that were killed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from prismer_jax.files.storage import TEMPORARY, PathLike, names

_LEFT = re.compile(r"\..*\.[0-9a-f]+" + re.escape(TEMPORARY), re.DOTALL)  # as storage.temporary calls files


@contextlib.contextmanager
def new_folder(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which is renamed to `path` at the end; where another process was faster, its stays."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    around = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:16]}.", suffix=TEMPORARY)  # for its owner alone
    folder = pathlib.Path(around, "new")
    try:
        folder.mkdir()  # for whoever may see other new folders
        yield folder
        try:
            folder.rename(path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(around, ignore_errors=True)


def sweep(folder: PathLike) -> None:
    """Removes what killed processes have left of files that they wrote in a local folder, when none is at work."""
    for name in names(os.fspath(folder)):
        if _LEFT.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
