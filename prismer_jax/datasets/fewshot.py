"""Photos in one folder a class, as ImageNet has them: all of them, or k of each class drawn by a seed.

The reference takes the first k files that the file system lists (NVlabs/prismer, dataset/classification_dataset.py),
which differ from disk to disk. Here the draw is a function of (seed, class folder, file names) alone, and the k photos
of a class are among its k + 1.
"""

from __future__ import annotations

import json
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from prismer_jax import label_files
from prismer_jax.datasets import label_names
from prismer_jax.datasets.formats.suffixes import SUFFIXES, UNREAD, UNREAD_REASON
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.storage import PathLike
from prismer_jax.labels import EXPERTS, select


def load(
    path: PathLike,
    *,
    names: PathLike | None = None,
    indices: PathLike | None = None,
    shots: int | None = None,
    seed: int = 0,
    labels: PathLike | None = None,
    experts: str | Sequence[str] = tuple(EXPERTS),
    limit: int | None = None,
) -> Source:
    """Opens a folder of classes, PATH/<class>/<photo>.

    Args:
      path: the folder.
      names: JSON list of the classes' names (the official imagenet_answer.json); without it folders are called what
        they are.
      indices: JSON {folder: index in names} (the official imagenet_class.json); by default folders in sorted order.
      shots: so many photos of each class, drawn by `seed`; None for all.
      labels: folder of label files, LABELS/<expert>/<class>/<photo>.png, or 'DIR/{expert}/...'.
      experts: whose label files are looked for.
      limit: only so many photos, evenly spaced over the classes.

    An example is `id`, `image` (path), `class_name`, `captions` (the name in lower case, as the reference trains on it)
    and the labels.

    Raises:
      UserError: no such folder, of photos or of labels, a class without name, or one with fewer photos than `shots`; or
        two photos that would share their label files, as a.jpg and a.png.
    """
    root, labels = pathlib.Path(path).expanduser(), label_names.folder(labels)
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []
    if not folders:
        raise UserError(f"{root}: no such folder with a folder of photos for each class.")
    if shots is not None and shots < 1:
        raise UserError(f"shots={shots}: at least 1 photo a class, or None for all.")
    table = _names([folder.name for folder in folders], names, indices)
    entries, dropped = [], Dropped()
    for folder in folders:
        shown = [p for p in folder.iterdir() if p.name[0] != "."]
        photos = sorted(p.name for p in shown if p.suffix.lower() in SUFFIXES)
        for other in (p for p in shown if p.suffix.lower() in UNREAD):
            dropped.add(UNREAD_REASON, str(other))
        if len(photos) < (shots or 1):
            raise UserError(f"{folder}: has {len(photos)} photos, fewer than the {shots or 1} wanted of each class.")
        if shots is not None:
            # RandomState: its stream is frozen for all versions of NumPy.
            order = np.random.RandomState([seed, zlib.crc32(folder.name.encode())]).permutation(len(photos))
            photos = [photos[i] for i in order[:shots]]
        entries += [(f"{folder.name}/{photo}", table[folder.name]) for photo in photos]
    if labels is not None:
        _check_names([photo for photo, _ in entries], root, label_names.ignores_case(labels))
    dropped.warn(root)
    if limit is not None:
        count = min(limit, len(entries))
        entries = [entries[place * len(entries) // count] for place in range(count)]
    return Source(str(root), entries, labels, select(experts))


class Source:
    """Examples of a folder of classes: `len(source)`, `source[i]`."""

    def __init__(
        self, root: str, entries: Sequence[tuple[str, str]], labels: str | None, experts: Sequence[str]
    ) -> None:
        self._root, self._entries, self._labels, self._experts = root, entries, labels, experts

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        photo, name = self._entries[index]
        example = {"id": photo, "image": os.path.join(self._root, photo), "class_name": name}
        example["captions"] = [name.lower()]
        if self._labels is not None:
            example.update(label_files.locate(self._labels, self._experts, photo))
        return example


def _check_names(photos: Sequence[str], root: pathlib.Path, any_case: bool) -> None:
    owners: dict[str, str] = {}
    for photo in photos:
        if (owner := owners.setdefault(label_names.key(photo, any_case), photo)) is not photo:
            raise UserError(f"{root / photo}: its label files would be those of {owner}. Rename one of them.")


def _names(folders: Sequence[str], names: PathLike | None, indices: PathLike | None) -> dict[str, str]:
    """{folder: name of its class}."""
    if names is None:
        return {folder: folder for folder in folders}
    class_names = _json(names, list)
    if indices is None and len(class_names) != len(folders):  # of which folder each is, their order would not tell
        raise UserError(
            f"{names}: has {len(class_names)} names for {len(folders)} folders of photos: give `indices`, too."
        )
    places = _json(indices, dict) if indices is not None else {folder: i for i, folder in enumerate(folders)}
    table = {}
    for folder in folders:
        try:
            place = int(places[folder])
            if place < 0 or not isinstance(class_names[place], str):
                raise IndexError
            table[folder] = class_names[place]
        except (KeyError, ValueError, TypeError, IndexError):
            raise UserError(
                f"{indices or names}: says no class for the folder {folder!r}. Give files for these folders."
            ) from None
    return table


def _json(path: PathLike, kind: type) -> Any:
    try:
        content = json.loads(pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(content, kind):
        raise UserError(f"{path}: holds no JSON {'list of names' if kind is list else 'table of folders'}.")
    return content
