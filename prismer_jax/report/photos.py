"""Photos with their label maps and what was said of them, as one picture: a sheet of panels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from prismer_jax import labels
from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.files import storage
from prismer_jax.objects import description
from prismer_jax.pp import build
from prismer_jax.report import draw

PHOTO = 400  # pixels of a photo on the sheet
MOST = 24  # panels on the sheet of `Sheet`


def sample(
    example: dict[str, Any], experts: Sequence[str], names: Mapping[str, Sequence[str]], described: bool = False
) -> dict[str, Any]:
    """Returns an example as `draw.panel` draws it; labels keep their own size. Raises BadSample.

    Args:
      described: with what the op `describe` says of its labels.
    """
    present = [name for name in experts if f"labels/{name}" in example]
    decoded = build("decode")(example, np.random.default_rng(0))
    asked = [f"{q['question']}  {', '.join(dict.fromkeys(q['answers']))}" for q in decoded.get("questions", ())]
    told = [" ".join(description.sentences(decoded, names))] if described else []
    return {
        "image": decoded["image"],
        "labels": {name: decoded[f"labels/{name}"] for name in present},
        "classes": names,
        "instances": decoded.get(labels.CLASSES_KEY),
        "words": decoded.get("words", ()),
        "prediction": str(decoded.get("id", "")),
        "references": [*told, *decoded.get("captions", ()), *asked],
    }


def kind_of(path: storage.PathLike) -> str:
    """Returns what Pillow calls the kind of picture that a name ends in; raises UserError for none."""
    return choose("kind of picture", os.path.splitext(path)[1].lower(), Image.registered_extensions())


def save(picture: Image.Image, path: str) -> None:
    """Writes a picture, local or remote, whole or not at all."""
    kind = kind_of(path)
    try:
        storage.make_folder(os.path.dirname(path) or ".")
        with storage.replacing(path) as name:
            picture.save(name, kind)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from None


class Sheet:
    """Draws the first results of the captioner, a panel each: photo, label maps, names, and what was said.

    Args:
      path: of the picture.
      example: what a result calls its photo -> the photo's example.
      experts, names: as in `sample`: whose maps are drawn, and the names of their classes.
    """

    def __init__(
        self,
        path: str,
        example: Callable[[str], dict[str, Any]],
        experts: Sequence[str],
        names: Mapping[str, Sequence[str]],
    ) -> None:
        kind_of(path)  # before the model works for nothing
        self._path, self._example, self._experts, self._names = path, example, experts, names
        self._panels: list[Image.Image] = []
        self._count = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """Draws a result, if there is still room."""
        self._count += 1
        if len(self._panels) == MOST or not result["image"]:
            return
        texts = result.get("captions") or result.get("answers") or result["choices"][:1]
        said = {"prediction": texts[0], "references": texts[1:], "question": result.get("question")}
        try:
            shown = sample(self._example(result["image"]), self._experts, self._names)
        except BadSample:  # it was there when the model read it
            return
        self._panels.append(draw.panel(shown | said, PHOTO))

    def save(self) -> str:
        """Writes the picture; returns a line about it."""
        save(draw.contact(self._panels), self._path)
        return f"{self._path}: {len(self._panels)} of {self._count} results"
