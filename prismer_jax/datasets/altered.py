"""A data set whose photos have other labels than their own, or none: what is a label worth that tells nothing?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import config, datasets, label_files, label_png
from prismer_jax.datasets import label_names
from prismer_jax.errors import UserError, choose
from prismer_jax.files.storage import PathLike
from prismer_jax.labels import CLASSES_KEY, EXPERTS, WORDS_KEY, select
from prismer_jax.pp.image import read_bytes
from prismer_jax.pp.image_size import image_size
from prismer_jax.pp.labels import maps, resample

HOW = ("blank", "shuffled", "folder")


def load(
    of: Mapping[str, Any],
    experts: str | Sequence[str],
    how: str,
    seed: int = 0,
    labels: PathLike | None = None,
) -> Altered:
    """Returns a data set with the labels of these experts altered.

    Args:
      of: the data set, as a config's section has it: {"name", ...}.
      experts: as in `labels.select`.
      how: 'blank', no labels, where a model sees the background; 'shuffled', those of another photo, drawn once;
        'folder', those that lie in `labels`, such as a student's.
      seed: of the draw.
      labels: folder of label files, as tools.make_labels leaves them for the photos of this data set.

    Raises:
      UserError: as `datasets.load`, an unknown `how`, or a folder that lacks labels of an expert.
    """
    names, how = select(experts), choose("way to alter labels:", how, HOW)
    if (how == "folder") != (labels is not None):
        raise UserError("altered labels: give labels=FOLDER with how='folder', and only there.")
    if (labels := label_names.folder(labels)) is not None and "{dataset}" in labels:
        raise UserError(f"{labels}: write the name of the data set instead of '{{dataset}}'.")
    if labels is not None and (missing := [name for name in names if name not in label_files.given(labels)]):
        raise UserError(
            f"{labels}: holds no labels of {', '.join(missing)}. Make them with python -m tools.make_labels."
        )
    keys = [key for name in names for key in keys_of(name)]
    return Altered(config.call(datasets.load, of, "altered.of", where="altered.of"), keys, how, seed, names, labels)


def keys_of(expert: str) -> list[str]:
    """Returns the keys under which an example holds the labels of an expert."""
    row = EXPERTS[expert]
    return [row.key, *{"instances": [CLASSES_KEY], "words": [WORDS_KEY, "words"]}.get(row.embed, [])]


class Altered:
    """The examples of a source, with other labels; of the experts in `blank` without."""

    def __init__(
        self,
        source: Any,
        keys: Sequence[str],
        how: str,
        seed: int,
        experts: Sequence[str] = (),
        labels: PathLike | None = None,
    ) -> None:
        self._source, self._keys, self._how, self._experts, self._labels = source, keys, how, experts, labels
        self.blank = tuple(experts) if how == "blank" else ()
        self._order = np.random.default_rng(seed).permutation(len(source))
        self._place = np.argsort(self._order)  # of each example in that order

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        out = {key: value for key, value in example.items() if key not in self._keys}
        if self._how == "shuffled":
            other = self._other(index, example["image"])
            labels = {key: other[key] for key in self._keys if key in other}
            out |= labels | _stretched(labels, example["image"], f"of example {other.get('id', '?')}")
        elif self._how == "folder":
            own = example.get("name") or str(example["id"])  # as tools.make_labels calls it
            name = self._source.name(index) if hasattr(self._source, "name") else own
            out |= label_files.locate(self._labels, self._experts, name)
        return out

    def _other(self, index: int, photo: Any) -> dict[str, Any]:
        """Returns the next example, in the drawn order, of another photo: several may be of one."""
        for step in range(1, len(self)):
            other = self._source[int(self._order[(self._place[index] + step) % len(self)])]
            if other["image"] != photo:
                return other
        raise UserError("Labels cannot be shuffled: the data set has one photo.")


def _stretched(labels: Mapping[str, Any], photo: Any, where: str) -> dict[str, Any]:
    """Returns the label maps of another photo, which messages call `where`, in the size of a photo: they must fit."""
    if not isinstance(photo, str | bytes | np.ndarray):  # none, or several, which have no maps
        return {}
    size, out = photo.shape[:2] if isinstance(photo, np.ndarray) else image_size(photo), {}
    for name, label in maps(labels).items():
        if not isinstance(label, np.ndarray):
            called = label if isinstance(label, str) else f"labels/{name} {where}"
            label = label_png.decode(name, read_bytes(label, called), called)
        if label is not None:
            out |= resample({"image": label, f"labels/{name}": label}, size)
    return out
