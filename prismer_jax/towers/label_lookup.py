"""What a stem reads of an expert's label map: numbers scaled to [-1, 1], or the vector of each class id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from prismer_jax import labels
from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS, FEATURES, MAX_IDS, WORDS_KEY
from prismer_jax.typing import Array


def label_maps(batch: Mapping[str, Any], experts: Sequence[str]) -> dict[str, Array]:
    """Returns the maps uint8 [b h w c] of a batch by expert.

    One that is missing is the background everywhere, of the size of the other maps, or of the image if there is none.
    """
    kinds = [EXPERTS[name] for name in experts]
    given = [batch[kind.key] for kind in kinds if kind.key in batch]

    def background(kind: labels.LabelKind) -> Array:
        like = given[0] if given else batch["image"]
        return jnp.full((*like.shape[:3], kind.channels), kind.fill, jnp.uint8)

    return {kind.name: batch[kind.key] if kind.key in batch else background(kind) for kind in kinds}


def features(
    expert: str, label: Array, batch: Mapping[str, Array], tables: Mapping[str, Array]
) -> Array | tuple[Array, Array]:
    """Returns a map of numbers scaled to [-1, 1], or a map of ids [b h w] and the vector of each id [#b 256 64].

    Args:
      label: the map uint8 [b h w c].
      batch: where the classes of instances, or the vectors of words, stand beside the maps.
      tables: those of `label_tables`.
    """
    if (embed := EXPERTS[expert].embed) == "scaled":
        x = label.astype(jnp.float32) / 255
        low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
        return 2 * (x - low) / (high - low + 1e-6) - 1
    ids, table = label[..., 0], tables[expert]
    classes = len(table) - 1  # the last row is the background
    if embed == "words":
        words = batch.get(WORDS_KEY, jnp.zeros((1, MAX_IDS, FEATURES)))
        return ids, jnp.where((jnp.arange(MAX_IDS) == BACKGROUND)[:, None], table[-1], words.astype(jnp.float32))
    rows = jnp.arange(MAX_IDS)[None]
    if embed == "instances":
        rows = batch.get(CLASSES_KEY, jnp.full((1, MAX_IDS), -1))
    has_class = (rows >= 0) & (rows < classes) & (jnp.arange(MAX_IDS) != BACKGROUND)
    return ids, table[jnp.where(has_class, rows, classes)]


def label_tables(experts: Sequence[str], classes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Returns, for each expert whose maps hold ids, the vectors [classes + 1, 64] of its classes and the background.

    They are a function of the classes' names; a checkpoint carries them, with the official tables where it has them.
    """
    tables = {}
    for name in experts:
        expert = EXPERTS[name]
        if expert.storage == "ids":
            names = classes.get(name) or [f"{name}/{i}" for i in range(expert.num_classes or 0)]
            tables[name] = labels.class_vectors([*names, labels.BACKGROUND_NAME])
    return tables
