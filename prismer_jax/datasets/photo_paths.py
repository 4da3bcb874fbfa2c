"""Where the photos of a list lie: under a folder of the user's, wherever the list's author had them."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from prismer_jax.datasets.formats import Row
from prismer_jax.errors import UserError

# The folders of the official layout (NVlabs/prismer, dataset/*.py): by an entry's `dataset`, and by its path.
FOLDERS = {"vqa": "vqav2"}
COCO, GENOME = "vqav2", "vg"
COCO_PARTS = ("train2014", "val2014", "test2014", "test2015")
GENOME_PATH = "visual-genome"  # in all paths of the official list of Visual Genome's captions
_NOWHERE = frozenset(("", ".", ".."))  # parts of a path that name no folder of their own
GENOME_PARTS = ("VG_100K", "VG_100K_2")  # the two folders in which Visual Genome's photos come, whose lists name none


class PhotoPath(NamedTuple):
    """The path of one photo, and what it tells.

    Attributes:
      path: of its file.
      name: its path below the folder of its data set: what its label files are called.
      file: which file it is, however its path is spelled; see `identity`.
      dataset: the data set's folder in the official layout, if the list or the path tells it.
      there: whether the file exists.
    """

    path: str
    name: str
    file: str
    dataset: str | None
    there: bool


class PhotoFinder:
    """Finds the photos of one list."""

    def __init__(self, path: pathlib.Path, images: str | os.PathLike | None, source: str | None) -> None:
        """Args:
        path: the list.
        images: the folder that its paths are relative to, or a template with '{dataset}'; by default `images` beside
          the list, or its own folder.
        source: takes the place of '{dataset}' where no entry says it.
        """
        self._list, self._source = path, source
        self._above: list[str] = []  # spellings of the given folder
        if images is not None:
            self._root = os.path.expanduser(os.fspath(images))
            if "{dataset}" not in self._root:
                self._above = spellings(self._root)
        else:
            self._root = str(path.parent / "images" if (path.parent / "images").is_dir() else path.parent)
        self._moved: dict[str, str] = {}  # the file that an absolute path of elsewhere is taken for -> that path

    def find(self, row: Row) -> PhotoPath:
        """Returns the place of a row's photo: an absolute path that exists is that file, whatever lies elsewhere.

        Any other is the first of those that the official layout allows where there is a file. Of two paths of elsewhere
        that end alike only one can be meant by a file here: the second is missing.
        """
        dataset = FOLDERS.get(row.dataset, row.dataset)
        image = name = _without_dots(row.image)
        parts, absolute, official = image.split("/"), os.path.isabs(image), True
        if GENOME_PATH in image:
            dataset, name = dataset or GENOME, "/".join(parts[-2:])
        elif len(parts) > 1 and parts[-2] in COCO_PARTS:
            dataset, name = dataset or COCO, "/".join(parts[-2:]) if absolute else image
        elif absolute:
            name, official = parts[-1], False
        if absolute and (file := existing(image)):
            name = name if official else below(self._above, image, file) or name
            return PhotoPath(image, _inside(name), file, dataset, True)
        names = [name, *(f"{part}/{parts[-1]}" for part in GENOME_PARTS if dataset == GENOME)]
        if len(parts) == 1 and name.startswith("COCO_"):  # COCO's own lists of captions do not name the folder
            names.append(f"{name.split('_')[1]}/{name}")
        folders = self._folders(dataset)
        for folder in folders:
            for candidate in names:
                if file := existing(path := os.path.join(folder, candidate)):
                    if absolute and not official and self._moved.setdefault(path, image) != image:
                        return PhotoPath(image, _inside(name), image, dataset, False)
                    return PhotoPath(path, _inside(candidate), file, dataset, True)
        path = os.path.join(folders[0], name)
        return PhotoPath(path, _inside(name), path, dataset, False)

    def _folders(self, dataset: str | None) -> list[str]:
        if "{dataset}" not in self._root:
            return [self._root, *([os.path.join(self._root, dataset)] if dataset else [])]
        if not (dataset or self._source):
            raise UserError(f"{self._list}: does not say what '{{dataset}}' in {self._root} stands for; give `source`.")
        return [self._root.replace("{dataset}", dataset or self._source)]


def _without_dots(path: str) -> str:
    """Returns a path without '.' and empty parts. '..' stays: behind a link it is not the folder before it."""
    if "./" not in path and "//" not in path:
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def _inside(name: str) -> str:
    """A path below a folder, whatever a list says: labels are written there."""
    parts = name.split("/")
    return name if _NOWHERE.isdisjoint(parts) else "/".join(part for part in parts if part not in _NOWHERE)


def existing(path: str) -> str | None:
    """Returns the `identity` of a path if there is such a file, by a listing of its folder that is kept.

    One listing is far faster than asking for each of 500,000 photos on a network disk.
    """
    folder, slash, name = path.rpartition("/")  # half a million times: os.path.split and join take twice as long
    names, place = _look(folder or slash)
    if name not in names:
        return None
    return path if place == folder else os.path.join(place, name)


def identity(path: str) -> str:
    """Returns one path for all spellings of a file: absolute, and without links to folders.

    A link to a file is a photo of its own, as a copy is: to ask each of 500,000 photos whether it is one takes long.
    """
    folder, name = os.path.split(path)
    return os.path.join(real(folder), name)


def spellings(folder: str) -> list[str]:
    """Returns a folder's absolute path, as it is spelled and without links, each with a slash at its end."""
    return [os.path.join(one, "") for one in (os.path.abspath(folder), real(folder))]


def below(above: Sequence[str], path: str, file: str) -> str | None:
    """Returns a path relative to a folder; None if it lies elsewhere.

    Args:
      above: the folder's `spellings`.
      path: of a photo.
      file: its `identity`.
    """
    return next((one[len(start) :] for start in above for one in (path, file) if one.startswith(start)), None)


@functools.lru_cache(maxsize=4096)
def real(folder: str) -> str:
    """Returns the path of a folder without links; '' is the current one."""
    return os.path.realpath(folder)


def look_anew() -> None:
    """Forgets what folders held: they may have changed since the last list."""
    _look.cache_clear()
    real.cache_clear()


@functools.lru_cache(maxsize=4096)
def _look(folder: str) -> tuple[frozenset[str], str]:
    """Returns the entries of a folder, none if there is no such folder, and its path without links."""
    try:
        return frozenset(os.listdir(folder or ".")), real(folder)
    except OSError:
        return frozenset(), folder
