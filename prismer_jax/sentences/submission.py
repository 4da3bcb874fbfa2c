"""Captions as the vectors that a competition asks for: a CSV of `imgId_eId,val`, a line for each number of each."""

from __future__ import annotations

import collections
import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import progress, storage
from prismer_jax.sentences import SentenceEmbedder

AT_ONCE = 1024  # captions, whose vectors are in memory


def check(images: Iterable[str]) -> None:
    """Raises a UserError if two photos would have the same lines: what counts is a file's name without its ending."""
    names = collections.Counter(map(_name, images))
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"{len(twice)} names of photos are there more than once, as {twice[0]}, and would have the same lines. "
            "Give each photo a name of its own."
        )


def write(path: storage.PathLike, results: Sequence[Mapping[str, Any]], embedder: SentenceEmbedder) -> None:
    """Writes the vector of the first caption of each photo, in the order of the results, whole or not at all."""
    with (
        storage.replacing(path) as name,
        open(name, "w", encoding="utf-8", newline="\n") as file,
        progress.bar("embedding", len(results), unit="captions") as advance,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("imgId_eId", "val"))
        for start in range(0, len(results), AT_ONCE):
            some = results[start : start + AT_ONCE]
            for result, vector in zip(some, embedder.embed([r["captions"][0] for r in some]).tolist(), strict=True):
                photo = _name(result["image"])
                rows.writerows((f"{photo}_{number}", f"{value:.9g}") for number, value in enumerate(vector))
            advance(len(some))


def _name(image: str) -> str:
    return pathlib.PurePath(image).stem
