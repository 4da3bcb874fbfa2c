"""Photos without a list: all those in a folder, and the captions that lie beside them."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prismer_jax.datasets import captions, img2dataset
from prismer_jax.datasets.formats.suffixes import SUFFIXES, UNREAD, UNREAD_REASON
from prismer_jax.datasets.photo_paths import identity
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.storage import PathLike

NOT_UTF8 = "file name that is not UTF-8"


def photos(images: PathLike | Sequence[PathLike], dropped: Dropped, repeats: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the photos of folders, recursively and in order, and files given as such.

    Each has `id`, `name` (path below the folder), `image` (path), and `captions` (from a parquet table) or
    `captions_file`, if there is either. Hidden files and folders, whose names begin with a dot, are passed over.

    Args:
      images: a folder, a file, or several.
      dropped: counts what img2dataset could not fetch into the folders, photos of kinds that are not read, those that
        several of `images` hold, and names that are not UTF-8.
      repeats: a file that is given by itself is a photo each time, with the id that it had.

    Raises:
      UserError: there is no such photo or folder, or no photo in a folder.
    """
    items = [images] if isinstance(images, PathLike) else list(images)
    roots = [os.path.expanduser(os.fspath(item)) for item in items]
    ids: set[str] = set()
    seen: dict[str, str] = {}  # file -> id
    count = 0
    for root in roots:
        if not os.path.exists(root):
            raise UserError(f"{root}: no such photo or folder.")
        entries = _walk(root, dropped) if os.path.isdir(root) else _beside(root, dropped)
        before = count
        for photo in entries:
            count += 1
            if len(roots) > 1:  # two photos may have one name: the later one is called by its whole path
                if (file := identity(photo["image"])) in seen:
                    if repeats and photo["image"] == root:
                        yield photo | {"id": seen[file]}
                    else:
                        dropped.add("photo given twice", photo["image"])
                    continue
                if photo["id"] in ids:
                    photo["id"] = photo["image"]
                ids.add(photo["id"])
                seen[file] = photo["id"]
            yield photo
        # One of many files that are given, as by *.jpg, is counted alone.
        if count == before and (os.path.isdir(root) or (root is roots[-1] and not count)):
            raise UserError(f"{shown([root])}: has no photos ({', '.join(SUFFIXES)}).{_hint(root, dropped)}")


def _hint(root: str, dropped: Dropped) -> str:
    """Says what a folder without photos has instead."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # `dropped` tells of a folder that cannot be read; a file has no names in it
        names = os.listdir(root)
    if any(".tar" in name for name in names):
        return " Its tars are a source of their own, named `tars`."
    if dropped:
        return f" Left out: {dropped.lines()[0].strip()}."
    if any(name.endswith((".parquet", ".tfrecord")) for name in names):
        return (
            " Photos inside Parquet or TFRecord files are not read: have img2dataset write --output_format webdataset."
        )
    return ""


def _walk(root: str, dropped: Dropped) -> Iterator[dict[str, Any]]:
    def lost(error: OSError) -> None:
        dropped.add("unreadable folder", f"{error.filename}: {error.strerror}.")

    seen = set()
    for folder, folders, files in os.walk(root, onerror=lost, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        shown = sorted(name for name in files if name[0] != ".")
        here = [name for name in shown if name.lower().endswith(SUFFIXES)]
        for name in shown if len(here) < len(shown) else ():
            if name.lower().endswith(UNREAD):
                dropped.add(UNREAD_REASON, ascii(os.path.join(folder, name))[1:-1])
        if folder != root:
            img2dataset.count_failures(folder, dropped)
        below = os.path.relpath(folder, root)
        table = None
        beside = frozenset(files)
        for name in here:
            relative = name if below == "." else os.path.join(below, name)
            if not _is_text(relative):
                dropped.add(NOT_UTF8, repr(os.path.join(folder, name)))
                continue
            photo = {"id": relative, "name": relative, "image": os.path.join(folder, name)}
            if side := _side(name, beside):
                photo["captions_file"] = os.path.join(folder, side)
            elif folder != root:
                table = img2dataset.table_captions(folder, dropped) if table is None else table
                if texts := table.get(os.path.splitext(name)[0]):
                    photo["captions"] = texts
            yield photo


def _beside(path: str, dropped: Dropped) -> Iterator[dict[str, Any]]:
    """Yields a photo that is given by itself."""
    stem = pathlib.Path(path)
    if not _is_text(path):
        dropped.add(NOT_UTF8, repr(path))
        return
    photo = {"id": stem.name, "name": stem.name, "image": path}
    if side := next((path for end in captions.SIDES if (path := stem.with_suffix(end)).exists()), None):
        photo["captions_file"] = str(side)
    yield photo


def _side(name: str, beside: frozenset[str]) -> str | None:
    stem = os.path.splitext(name)[0]
    ends = (case for end in captions.SIDES for case in (end, end.upper()))
    return next((stem + end for end in ends if stem + end in beside), None)


def shown(paths: Iterable[PathLike]) -> str:
    """Returns paths as messages name them, that may go into a log: bytes that are not UTF-8 are escaped."""
    return ", ".join(map(str, paths)).encode(errors="backslashreplace").decode()


def _is_text(name: str) -> bool:
    """Returns False for names that Python can only hold with surrogates: no data set and no report could."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
