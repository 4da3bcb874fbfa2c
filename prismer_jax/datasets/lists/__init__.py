"""Real photos: lists in the usual formats, or folders, with expert labels beside them or none.

`load(path)` reads the layouts of datasets/formats/; without `path`, `images` is a folder, such as img2dataset leaves
it, or files (datasets/folders.py). `gathering.py` joins what the rows of lists say of each photo, and `source.py` makes
examples of photos, whatever they were found by.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from prismer_jax.datasets import folders, label_names, photo_paths
from prismer_jax.datasets.formats.reading import LINES
from prismer_jax.datasets.lists.gathering import Gatherer
from prismer_jax.datasets.lists.source import Example, Source, Task
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.storage import PathLike
from prismer_jax.labels import EXPERTS, select

ENDINGS = (".json", *LINES, ".csv", ".tsv", ".txt", ".parquet")  # of lists; their layout is told by what is in them

logger = logging.getLogger(__name__)


def in_folder(folder: str, name: str, default: str = ".json") -> str:
    """Returns the path of the list NAME.json in a folder on a disk, or of NAME with the one other of ENDINGS there is.

    Without any, or in a bucket, it is that of NAME with the `default` ending.

    Raises:
      UserError: there are lists of several other endings.
    """
    there = [path for ending in ENDINGS if os.path.exists(path := os.path.join(folder, name + ending))]
    if len(there) > 1 and not there[0].endswith(".json"):
        raise UserError(f"{folder}: holds {' and '.join(map(os.path.basename, there))}: leave one list of {name}.")
    return there[0] if there else os.path.join(folder, name + default)


def load(
    path: PathLike | Sequence[PathLike] | None = None,
    *,
    images: PathLike | Sequence[PathLike] | None = None,
    labels: PathLike | None = None,
    questions: PathLike | None = None,
    annotations: PathLike | Sequence[PathLike] | None = None,
    split: str | None = None,
    task: Task | None = None,
    source: str | None = None,
    experts: str | Sequence[str] = tuple(EXPERTS),
    limit: int | None = None,
    max_missing: float = 0.01,
) -> Source:
    """Returns a source of examples from lists or folders; photos and labels are opened when an example is read.

    Args:
      path: a list of a layout in datasets/formats/, or several, whose photos are joined by their files.
      images: the folder that the lists' paths are relative to, or one for each list: by default `images` beside a
        list, or its own folder. '{dataset}' in it stands for an entry's data set. Without a list: a folder, a file, or
        several.
      labels: the folder of label files, laid out as in the official repository: `labels/<expert>/<image>.png`;
        'DIR/{expert}/{dataset}' where data sets have folders of their own.
      questions: another name for `path`, beside annotations.
      annotations: the answers to the questions of `path`, VQAv2's file; as many as there are lists of such questions.
      split: which part of a list that has several, as Karpathy's.
      task: what the list must be for; None takes what it is; 'all' has one example a photo with everything of it.
      source: what the data set is called; by default its entries say it, or the list or folder does by its own name.
      experts: whose label files are looked for.
      limit: take only so many examples, the first ones.
      max_missing: the fraction of a list's photos that may be missing, and of its entries and texts that may be
        unusable; they are left out, with a warning.

    An example has `id`, `image` (path), the labels, `domain` and `class_name` where a list has these, and is
      with the task 'caption', a photo with all its `captions`;
      with the task 'question', one `question`, with `answers` (a single answer is repeated ten times), `photo` (its
        path), `question_type`, and where the list says them `answer_weights`, `question_id` and `weight`;
      with the task 'all', a photo with `name` (the path that its label files have below an expert's folder), `source`,
        `captions` and `questions`, dicts of what is said above of a question; either may be empty; and `left_out`,
        (reason, case) of captions beside the photo that cannot be used, if there are any.

    Raises:
      UserError: a file is missing or malformed, or too many photos are missing, or too many entries or texts cannot be
        used; the message names the first.
    """
    if path is not None and questions is not None:
        raise UserError("Give the questions as `path` or as `questions`, not both.")
    path = questions if path is None else path
    labels = label_names.folder(labels)
    photo_paths.look_anew()
    dropped = Dropped()
    if path is None:
        if not images:
            raise UserError("Give `path` (a list) or `images` (a folder of photos, or files).")
        if annotations is not None or split is not None or task == "question":
            raise UserError("Photos without a list have no questions and no splits; give `path`.")
        roots = _several(images)
        where, task = folders.shown(roots[:3]), task or "caption"
        name = source or os.path.basename(os.path.abspath(roots[0]))
        every_photo = ({"source": name, **photo} for photo in folders.photos(roots, dropped))
        photos: Iterable[Example] = every_photo
        if labels is not None:
            photos = label_names.distinct(photos, labels, dropped)
        photos = itertools.islice(photos, limit)
    else:
        paths, roots = _several(path), _several(images) or [None]
        if len(roots) not in (1, len(paths)):
            raise UserError(
                f"{len(paths)} lists, but {len(roots)} folders of `images`: give one, or one for each list."
            )
        where = ", ".join(map(str, paths))
        gathered = Gatherer(source, dropped, max_missing)
        gathered.add_all(paths, roots, _several(annotations), split)
        photos = gathered.photos(where)
        if labels is not None:
            photos = list(label_names.distinct(photos, labels, dropped))
        task = _task_of(task, photos, where)
        _say_what_lacks(task, photos, where)
        photos = photos if task == "question" else photos[:limit]
    experts = select(experts)
    opened = Source(photos, task, labels, experts, dropped, limit)
    if path is not None:
        opened.files, opened.split = [*paths, *_several(annotations)], split or ""
    dropped.warn(where)  # now that folders have been searched, too
    if not len(opened):
        raise UserError(f"{where}: lists no photos.")
    return opened


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, PathLike) else list(value)


def _task_of(task: Task | None, photos: Sequence[Example], where: str) -> Task:
    asked = any(photo["questions"] for photo in photos)
    kind = "question" if asked else "caption"
    captioned = any(photo["captions"] for photo in photos)
    if (task == "question" and not asked) or (task == "caption" and asked and not captioned):
        raise UserError(f"{where}: is a list for the task {kind!r}, not {task!r}.")
    return task or kind


def _say_what_lacks(task: Task, photos: Sequence[Example], where: str) -> None:
    """Warns of photos without captions, or questions without answers: test lists may be so, no others."""
    if task == "caption" and (bare := sum(not photo["captions"] for photo in photos)):
        logger.warning("%s: %d of %d photos have no caption to train on or to score.", where, bare, len(photos))
    answers = [bool(question["answers"]) for photo in photos for question in photo["questions"]]
    if task != "caption" and (bare := answers.count(False)):
        logger.warning("%s: %d of %d questions have no answer to train on or to score.", where, bare, len(answers))
