"""Photos with what is asked of them and what is to be said: JSON lines or Parquet of {image, prefix, suffix}.

A row has `image`, a path or encoded bytes, or `images`, the frames of a video in their order; `suffix`, `answers`,
`answer` or `captions`, a text or several, of which training draws one; and `prefix`, the whole prompt, or what a config
makes one of: `question`, `choices`, `hint`, `language` ... An `answer` that is a number is that of one of the
`choices`; `weight` is the row's in the loss. Any other file is a list of a layout in datasets/formats/.

Source: google-research/big_vision, datasets/jsonl.py, and the fields that configs/proj/paligemma/transfers/ name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax import label_files
from prismer_jax.datasets import conversations, label_names, lists, photo_paths
from prismer_jax.datasets.formats.entries import weight_of
from prismer_jax.datasets.formats.row import answer_among, id_text, is_empty
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files.storage import PathLike
from prismer_jax.labels import EXPERTS

Example = dict[str, Any]
SUFFIXES = ("suffix", "answers", "answer", "captions", "caption")  # the first that a row has


def load(
    path: PathLike | Sequence[PathLike],
    *,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    limit: int | None = None,
    **options: Any,
) -> conversations.Source | Once:
    """Returns a source of examples, which are read when they are asked for; a wrong line is a bad sample that is named.

    Args:
      path: files, or a folder of such tables.
      images: the folder that paths of photos are relative to; by default that of their file.
      labels: the folder of label files, labels/<expert>/<photo>.png, of rows that name one photo by its path; <photo>
        is that path below the folder of photos, which must hold it where it is absolute.
      limit: take only so many rows, the first ones.
      options: of lists.load, where the file is such a list.

    An example has `id`, `image`, `answers` (the suffixes), the same as `captions`, and what else the row has.

    Raises:
      UserError: a file is missing, or has no rows.
    """
    one = isinstance(path, PathLike)
    if one and not os.fspath(path).endswith(conversations.ENDS) and os.path.isfile(path):
        return Once(lists.load(path, images=images, labels=labels, limit=limit, **options))
    if options:
        raise UserError(f"{path}: {', '.join(options)}: of lists alone; leave them out.")
    labels = label_names.folder(labels)
    source = conversations.load(path, images=images, limit=limit, kind=Pairs)
    source.labels = labels
    return source


class Pairs(conversations.Source):
    """Rows of tables: `len(source)`, `source[i]`."""

    columns = None  # whatever a row has
    labels: PathLike | None = None  # folder of label files

    def __getitem__(self, index: int) -> Example:
        where, name, row, photos = self.found(index)
        if not photos:
            raise BadSample(f"{where}: has no image.", "no image")
        row = {key: value for key, value in row.items() if value == value}  # NaN is an empty cell of pandas
        said = _suffixes(row, where)
        for key in ("prefix", "question"):
            if (text := row.get(key)) is not None and not isinstance(text, str):
                raise BadSample(f"{where}: its {key} is {text!r} instead of a text.", "no text")
        own = {key: value for key, value in row.items() if key not in ("images", "answer", *SUFFIXES)}
        if is_empty(own.get("question_id")):  # evaluators take what is there for an id
            own.pop("question_id", None)
        if not is_empty(weight := own.pop("weight", None)):
            try:
                own["weight"] = weight_of(weight)
            except BadSample as error:
                raise BadSample(f"{where}: {error}", error.reason) from None
        if (choices := own.get("choices")) is not None:
            if not isinstance(choices, list):
                raise BadSample(f"{where}: its choices are {choices!r} instead of a list.", "no text")
            own["choices"] = _texts(choices, "choice", where)
        if own.get("question") is None and row.get("prefix") is not None:
            own["question"] = row["prefix"]
        id = next((row[key] for key in ("question_id", "id") if not is_empty(row.get(key))), name)
        photo = photos[0] if isinstance(photos[0], str) else name
        image = photos[0] if row.get("images") is None else photos
        if self.labels is not None and isinstance(row.get("image"), str):
            own |= label_files.locate(self.labels, tuple(EXPERTS), self._label_name(index, row["image"], where))
        return {"photo": photo, **own, "id": str(id), "image": image, "answers": said, "captions": said}

    def _label_name(self, index: int, image: str, where: str) -> str:
        """Returns what a photo's label files are called: its path below the folder that paths are relative to.

        Raises:
          BadSample: it lies elsewhere, where two photos of one name would share their label files.
        """
        if not os.path.isabs(image):
            return image
        folder, path = str(self.folder(index)), os.path.normpath(image)
        if (name := photo_paths.below(photo_paths.spellings(folder), path, photo_paths.identity(path))) is None:
            remedy = "Give as `images` a folder that holds it, below which its label files are called as it is."
            raise BadSample(f"{where}: its photo lies outside of {folder}. {remedy}", "photo outside of images")
        return name


class Once:
    """A list whose photos, or questions, an epoch has once each, whatever the number of their texts."""

    def __init__(self, source: lists.Source) -> None:
        self._source, self.dropped, self.fingerprint = source, source.dropped, source.fingerprint

    @property
    def made_of(self) -> str | None:
        return self._source.made_of

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self._source[index]


def _suffixes(row: Mapping[str, Any], where: str) -> list[str]:
    """Returns what may be said; [] of a row of a test set.

    Raises:
      BadSample: it is no text, or no choice, or may be one of two.
    """
    said = next((row[key] for key in SUFFIXES if row.get(key) is not None), [])
    if isinstance(choices := row.get("choices"), list):
        try:
            said = answer_among(choices, said)
        except BadSample as error:
            raise BadSample(f"{where}: {error}.", error.reason) from None
    return _texts(said if isinstance(said, list) else [said], "suffix", where)


def _texts(values: Sequence[Any], what: str, where: str) -> list[str]:
    """Returns texts, and numbers as texts; raises BadSample for anything else."""
    texts = [id_text(one) if type(one) in (int, float) and one == one else one for one in values]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadSample(f"{where}: its {what} is {wrong[0]!r} instead of a text.", "no text")
    return texts
