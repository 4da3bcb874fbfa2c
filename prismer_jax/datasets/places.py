"""Where the photos of a list lie: under a folder of the user's, wherever the list's author had them."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

from prismer_jax.datasets.formats import Row
from prismer_jax.errors import UserError

# The folders of the official layout (NVlabs/prismer, dataset/*.py): by an entry's `dataset`, and by its path.
FOLDERS = {"vqa": "vqav2"}
COCO, GENOME = "vqav2", "vg"
COCO_PARTS = ("train2014", "val2014", "test2014", "test2015")
GENOME_PATH = "visual-genome"  # in all paths of the official list of Visual Genome's captions
GENOME_PARTS = ("VG_100K", "VG_100K_2")  # the two folders in which Visual Genome's photos come, whose lists name none


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Of one photo.

    Attributes:
      path: of its file.
      name: its path below the folder of its data set: what its label files are called.
      dataset: the data set's folder in the official layout, if the list or the path tells it.
      there: whether the file exists.
    """

    path: str
    name: str
    dataset: str | None
    there: bool


class Places:
    """Finds the photos of one list."""

    def __init__(self, path: pathlib.Path, images: str | os.PathLike | None, source: str | None) -> None:
        """Args:
        path: the list.
        images: the folder that its paths are relative to, or a template with '{dataset}'; by default `images` beside
          the list, or its own folder.
        source: takes the place of '{dataset}' where no entry says it.
        """
        self._list, self._source = path, source
        if images is not None:
            self._root = os.path.expanduser(os.fspath(images))
        else:
            self._root = str(path.parent / "images" if (path.parent / "images").is_dir() else path.parent)

    def find(self, row: Row) -> Place:
        """The place of a row's photo: the first of those that the official layout allows where there is a file."""
        dataset = FOLDERS.get(row.dataset, row.dataset)
        name, parts = row.image, row.image.split("/")
        if GENOME_PATH in row.image:
            dataset, name = dataset or GENOME, "/".join(parts[-2:])
        elif len(parts) > 1 and parts[-2] in COCO_PARTS:
            dataset, name = dataset or COCO, "/".join(parts[-2:]) if os.path.isabs(row.image) else row.image
        elif os.path.isabs(row.image):
            name = parts[-1]
        names = [name, *(f"{part}/{parts[-1]}" for part in GENOME_PARTS if dataset == GENOME)]
        folders = self._folders(dataset)
        for folder in folders:
            for candidate in names:
                if exists(path := os.path.join(folder, candidate)):
                    return Place(path, _inside(candidate), dataset, True)
        if os.path.isabs(row.image) and exists(row.image):
            return Place(row.image, _inside(name), dataset, True)
        return Place(os.path.join(folders[0], name), _inside(name), dataset, False)

    def _folders(self, dataset: str | None) -> list[str]:
        if "{dataset}" not in self._root:
            return [self._root, *([os.path.join(self._root, dataset)] if dataset else [])]
        if not (dataset or self._source):
            raise UserError(f"{self._list}: does not say what '{{dataset}}' in {self._root} stands for; give `source`.")
        return [self._root.replace("{dataset}", dataset or self._source)]


def _inside(name: str) -> str:
    """A path below a folder, whatever a list says: labels are written there."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def exists(path: str) -> bool:
    """Whether there is a file, by a listing of its folder that is kept.

    One listing is far faster than asking for each of 500,000 photos on a network disk.
    """
    folder, name = os.path.split(path)
    return name in names(folder or ".")


@functools.lru_cache(maxsize=4096)
def names(folder: str) -> frozenset[str]:
    """The entries of a folder; none if there is no folder. `names.cache_clear()` makes it look anew."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()
