"""The layouts of lists, each read as rows that say something of a photo; docs/data.md has the table of them.

`rows` tells a layout by its content: a file is read by reading.py, and its content by coco.py, vqa.py, genome.py or
entries.py, whose docstrings describe the layouts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prismer_jax.datasets.formats import coco, conversations, genome, vqa
from prismer_jax.datasets.formats.entries import entries
from prismer_jax.datasets.formats.reading import PHOTO_KEYS, read
from prismer_jax.datasets.formats.row import LeftOut, Row, id_text, is_empty
from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike

__all__ = ["LeftOut", "Row", "id_text", "is_empty", "read", "rows", "wants_annotations"]


SHOULD = "an entry has `image` and `caption`, or `image`, `question` and `answers`; docs/data.md has all layouts"


def rows(
    path: PathLike,
    annotations: PathLike | None = None,
    split: str | None = None,
    left_out: LeftOut | None = None,
    content: Any = None,
) -> Iterator[Row]:
    """Yields the rows of a list.

    Args:
      path: the list.
      annotations: the answers to its questions, VQAv2's file.
      split: which part of a list that has `split` with each photo: 'train' is train and restval.
      left_out: counts what of the list is no row.
      content: of the file, where it was read before.

    Raises:
      UserError: a file cannot be read, is not of these layouts, or has no such split; names the file and what it is.
    """
    content = read(path) if content is None else content
    try:
        yield from _choose(content, annotations, split, LeftOut() if left_out is None else left_out)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: {what}.") from None


def wants_annotations(content: Any) -> bool:
    """Returns whether a list is of questions whose answers are in a file of their own."""
    return _asks(content) and not vqa.has_answers(content)


def _asks(content: Any) -> bool:
    """Returns whether a list is a file of questions that name their photos by ids."""
    if not isinstance(content, Mapping) or "questions" not in content or _names_photos(content["questions"]):
        return False
    return "data_subtype" in content or not _is_entry(content)


def _choose(content: Any, annotations: PathLike | None, split: str | None, left_out: LeftOut) -> Iterable[Row]:
    if annotations is not None and not wants_annotations(content):
        raise ValueError("it has its answers inside; leave `annotations` out")
    if _asks(content):
        _no_split(split)
        return vqa.questions(content, None if annotations is None else read(annotations), left_out)
    if isinstance(content, Mapping) and isinstance(images := content.get("images"), list) and _first(images):
        if any("sentences" in image and "filename" in image for image in images if isinstance(image, Mapping)):
            return coco.karpathy(content, split, left_out)
        _no_split(split)
        if "file_name" in _first(images):
            return coco.captions(content, left_out)
    _no_split(split)
    content = _as_entries(content) if isinstance(content, Mapping) else content
    if isinstance(content, Mapping):
        return vqa.gqa(content, left_out)
    if not isinstance(content, list) or not content:
        raise ValueError(f"it is no list of entries: {SHOULD}")
    first = _first(content)
    if not first:
        raise ValueError(f"its entries are like {str(content[0])[:60]}: {SHOULD}")
    if "regions" in first:
        return genome.regions(content, left_out)
    if "qas" in first and not _names_photos(content):
        return genome.questions(content, left_out)
    if ("url" in first or "image_url" in first) and not _names_photos(content):
        raise ValueError("it lists urls: fetch the photos with img2dataset, then give its output as images or tars")
    return entries(content, left_out)


def _as_entries(content: Mapping[str, Any]) -> Any:
    """Returns the list of entries that an object is in another form; GQA's object as it is.

    Raises:
      ValueError: it is none; says what it is, where that is known.
    """
    for key in ("questions", "data", "annotations"):
        inner = content.get(key)
        if _names_photos(inner) or (key == "data" and "question" in _first(inner)):
            return inner
    if "annotations" in content and "question_id" in _first(content["annotations"]):
        raise ValueError("it is a file of answers without questions: give it as `annotations`, beside its questions")
    if "annotations" in content and "image_id" in _first(content["annotations"]):
        raise ValueError("it has annotations but no `images`, which say what the photos are called")
    if isinstance(content.get("data"), Mapping) and "dialogs" in content["data"]:
        raise ValueError("it is a list of VisDial, whose dialogs cannot be read")
    if _is_entry(content):
        return [content]
    first = _first(list(content.values()))
    if "imageId" in first:
        return content
    if _names_photos([first]):
        return [entry for entry in content.values() if isinstance(entry, Mapping)]
    if content and all(os.path.splitext(name)[1] for name in content):
        return [
            {"image": name, **(said if isinstance(said, Mapping) else {"captions": said})}
            for name, said in content.items()
        ]
    raise ValueError(f"it is an object with {', '.join(map(str, list(content)[:6])) or 'nothing'} in it: {SHOULD}")


def _first(content: Any) -> Mapping[str, Any]:
    """Returns the first entry that is an object, of a list's first hundred; an empty one if there is none."""
    head = content[:100] if isinstance(content, list) else []
    return next((entry for entry in head if isinstance(entry, Mapping)), {})


def _names_photos(content: Any) -> bool:
    return any(key in _first(content) for key in PHOTO_KEYS)


def _is_entry(content: Mapping[str, Any]) -> bool:
    """Returns whether an object is an entry itself, as in a file of JSON lines that has one."""
    chat = any(key in content for key in conversations.KEYS)
    return chat or (_names_photos([content]) and not isinstance(content.get("images"), list))


def _no_split(split: str | None) -> None:
    if split is not None:
        raise ValueError(f"it does not say which photos belong to the split {split!r}; leave `split` out")
