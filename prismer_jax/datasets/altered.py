"""A data set whose photos have other labels than their own, or none: what is a label worth that tells nothing?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import datasets
from prismer_jax.errors import UserError, choose
from prismer_jax.labels import CLASSES_KEY, EXPERTS, WORDS_KEY, select

HOW = ("blank", "shuffled")


def load(of: Mapping[str, Any], experts: str | Sequence[str], how: str, seed: int = 0) -> Altered:
    """Returns a data set with the labels of these experts altered.

    Args:
      of: the data set, as a config's section has it: {"name", ...}.
      experts: as in `labels.select`.
      how: 'blank', no labels, where a model sees the background; 'shuffled', those of another photo, drawn once.
      seed: of the draw.

    Raises:
      UserError: as `datasets.load`, or an unknown `how`.
    """
    keys = [key for name in select(experts) for key in keys_of(name)]
    return Altered(datasets.load(**of), keys, choose("way to alter labels:", how, dict.fromkeys(HOW, how)), seed)


def keys_of(expert: str) -> list[str]:
    """Returns the keys under which an example holds the labels of an expert."""
    row = EXPERTS[expert]
    return [row.key, *{"instances": [CLASSES_KEY], "words": [WORDS_KEY, "words"]}.get(row.embed, [])]


class Altered:
    """The examples of a source, with other labels."""

    def __init__(self, source: Any, keys: Sequence[str], how: str, seed: int) -> None:
        self._source, self._keys, self._how = source, keys, how
        self._order = np.random.default_rng(seed).permutation(len(source))
        self._place = np.argsort(self._order)  # of each example in that order

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        out = {key: value for key, value in example.items() if key not in self._keys}
        if self._how == "shuffled":
            other = self._other(index, example["image"])
            out |= {key: other[key] for key in self._keys if key in other}
        return out

    def _other(self, index: int, photo: Any) -> dict[str, Any]:
        """Returns the next example, in the drawn order, of another photo: several may be of one."""
        for step in range(1, len(self)):
            other = self._source[int(self._order[(self._place[index] + step) % len(self)])]
            if other["image"] != photo:
                return other
        raise UserError("Labels cannot be shuffled among the photos of a data set that has one.")
