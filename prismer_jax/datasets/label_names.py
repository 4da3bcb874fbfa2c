"""Whose label files are whose: they are called as the photo without its suffix, and no two photos may share them."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from prismer_jax import label_files
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped

USED_TWICE = "name used twice"
REMEDY = "Rename one of them, or give as `images` a folder that holds both."


def key(name: str, any_case: bool = False) -> str:
    """Returns what is the same of two names if their label files are.

    Args:
      name: of a photo, below the folder of its data set.
      any_case: the label files lie on a disk that takes A.png and a.png for one file, see `ignores_case`.
    """
    stem, _, suffix = name.rpartition(".")
    whole = name if "/" in suffix or not stem or stem.endswith("/") else stem
    return whole.casefold() if any_case else whole


def folder(labels: storage.PathLike | None) -> str | None:
    """Returns the folder of labels as text, ~ written out, or several where '{expert}' or '{dataset}' is in it.

    Raises:
      UserError: there is no such folder.
    """
    if labels is None:
        return None
    if not re.search(r"\{(expert|dataset)\}", os.fspath(labels)) and not storage.on_disk(labels).is_dir():
        raise UserError(f"{labels}: no such folder of labels. Leave `labels` out for photos without labels.")
    return storage.plain(labels)


def ignores_case(folder: storage.PathLike) -> bool:
    """Returns whether a folder of label files, or the nearest above it that exists, is on a disk that ignores case."""
    path = pathlib.Path(os.path.abspath(label_files.home(os.fspath(folder).partition("{dataset}")[0])))
    for one in (path, *path.parents):
        if one.exists() and one.name.swapcase() != one.name:
            return one.with_name(one.name.swapcase()).exists()
    return False


def distinct(photos: Iterable[dict[str, Any]], labels: storage.PathLike, dropped: Dropped) -> Iterator[dict[str, Any]]:
    """Yields photos; leaves out those whose label files would be those of one before them.

    Args:
      photos: dicts with `id`, `name`, `image` and `source`, perhaps `dataset`; see lists.Source.
      labels: the folder of the label files; where it holds '{dataset}', names are compared within data sets.
      dropped: counts what is left out.
    """
    by_dataset, any_case = "{dataset}" in os.fspath(labels), ignores_case(labels)
    owners: dict[Any, dict[str, Any]] = {}
    for photo in photos:
        name: Any = key(photo["name"], any_case)
        if by_dataset:
            name = str(photo.get("dataset") or photo["source"]), name
        owner = owners.setdefault(name, photo)
        if owner["id"] == photo["id"]:  # itself, or the same photo again
            yield photo
        else:
            dropped.add(USED_TWICE, f"{photo['image']}: its label files would be those of {owner['image']}. {REMEDY}")
