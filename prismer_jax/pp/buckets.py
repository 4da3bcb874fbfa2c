"""Batches of few sizes: of photos in tiles, and their texts, as many tiles and columns as the rows have need of.

`tiles` and `chat` fill an example up to what the largest one could have. Before examples become a batch this is cut to
the next of a few sizes, 1, 3, 5, 9, 17, 33 or 65 tiles (a whole photo and a grid) and 32, 64, 128 ... columns, so that
photos of one tile do not pay for 65 and a model is compiled only so many times.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from prismer_jax.batch import TEXT
from prismer_jax.labels import CLASSES_KEY, EXPERTS, WORDS_KEY

Example = dict[str, Any]
WINDOW = 64  # batches among which samples of like sizes come together
TILED = ("image", "image_mask", "features", *(expert.key for expert in EXPERTS.values()))  # keys with an axis of tiles
TABLES = {CLASSES_KEY: 2, WORDS_KEY: 3}  # keys that have one in packed rows, and their rank then
COLUMNS = (*TEXT, "mask_loss")


def tiles_for(count: int, most: int = sys.maxsize) -> int:
    """Returns how many tiles a batch has whose largest row has `count` of at most `most`."""
    return min(most, 1 if count <= 1 else 1 + 2 ** max(1, int(count - 2).bit_length()))


def columns_for(count: int, most: int = sys.maxsize) -> int:
    """Returns how many columns a batch has whose texts take `count` of at most `most`."""
    return min(most, max(32, 2 ** int(count - 1).bit_length()))


def trimmed(examples: Sequence[Example]) -> list[Example]:
    """Returns the examples of a batch without the tiles and columns that none of them needs.

    Args:
      examples: of equal shapes, with `image_mask`, perhaps `text`; those whose `_mask` is False count for nothing.
    """
    counted = [example for example in examples if example["_mask"]] or examples
    there = np.stack([example["image_mask"] for example in counted]).any(0)
    tiles = tiles_for(_end(there), len(there))
    tables = [key for key, rank in TABLES.items() if key in counted[0] and counted[0][key].ndim == rank]
    cuts = dict.fromkeys((*(key for key in TILED if key in counted[0]), *tables), slice(tiles))
    if "text" in counted[0]:
        real = np.stack([example["mask_input"] for example in counted]).any(0)
        start, end = int(real.argmax()), _end(real)
        width = columns_for(end - start, len(real))
        start = max(0, end - width)  # prompts have their padding on the left, what is learnt on the right
        cuts |= dict.fromkeys((key for key in COLUMNS if key in counted[0]), slice(start, start + width))
    return [{**example, **{key: example[key][cut] for key, cut in cuts.items()}} for example in examples]


def _end(there: np.ndarray) -> int:
    """Returns the place behind the last True."""
    return int(np.flatnonzero(there).max(initial=-1)) + 1


def counted(prompts: Sequence[Sequence[int]], image_mask: np.ndarray) -> list[list[int]]:
    """Returns the prompts of a batch in a form that does not depend on it: the number of tiles, then the tokens.

    Args:
      prompts: ids, -1 for padding.
      image_mask: bool [b, m].
    """
    return [
        [int(mask.sum()), *(token for token in prompt if token >= 0)]
        for prompt, mask in zip(prompts, image_mask, strict=True)
    ]


def blank(
    template: Example, prompts: Sequence[Sequence[int]], others: Sequence[Sequence[int]]
) -> tuple[Example, np.ndarray]:
    """Returns blank tiles, and the ids [b, columns] of prompts with -1 for padding on the left.

    Args:
      template: a batch whose tiles are blank.
      prompts: as `counted` returns them.
      others: the prompts of all processes, by which they agree on the shapes.
    """
    counts = np.array([prompt[0] for prompt in prompts])
    tiles = tiles_for(max(prompt[0] for prompt in others))
    width = columns_for(max(map(len, others)) - 1)
    images = {}
    for key in TILED:
        if key in template:
            first = template[key][: len(prompts), :1]
            images[key] = np.broadcast_to(first, (len(first), tiles, *first.shape[2:]))
    images["image_mask"] = np.arange(tiles) < counts[:, None]
    rows = [[-1] * (width + 1 - len(prompt)) + list(prompt[1:]) for prompt in prompts]
    return images, np.array(rows, template["text"].dtype)


class Neighbours:
    """An order in which the samples of a batch are of like sizes: place -> number of the sample.

    Of every WINDOW batches of another order, or as many as an epoch has, the samples are sorted by their tiles, then by
    their tokens, and cut into batches, which come in random order: a function of the place, as the other order is.

    Args:
      order: of the samples, by place, without an end.
      sizes: int [n, 2], tiles and tokens of each sample.
      batch_size: of all processes together.
      seed: of the order of the batches.
    """

    def __init__(self, order: Any, sizes: np.ndarray, batch_size: int, seed: int) -> None:
        self._order, self._seed = order, seed
        self._batches = min(WINDOW, max(1, len(sizes) // batch_size))
        self._size = self._batches * batch_size
        most = sizes.max(0)
        self._kinds = np.array([(tiles_for(t, most[0]), columns_for(c, most[1])) for t, c in sizes.tolist()])
        self._last: tuple[int, np.ndarray] | None = None

    def __call__(self, place: int) -> int:
        number, inside = divmod(int(place), self._size)
        last = self._last
        if last is None or last[0] != number:
            members = np.array([self._order[i] for i in range(number * self._size, (number + 1) * self._size)])
            members = members[np.lexsort(self._kinds[members].T[::-1])].reshape(self._batches, -1)
            last = self._last = number, np.random.default_rng([self._seed, number]).permutation(members).ravel()
        return int(last[1][inside])
