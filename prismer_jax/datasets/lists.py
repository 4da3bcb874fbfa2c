"""Real photos: lists in the usual formats, or folders, with expert labels beside them or none.

`load(path)` reads the layouts of datasets/formats/; without `path`, `images` is a folder, such as img2dataset leaves
it, or files (datasets/folders.py).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax import label_files
from prismer_jax.datasets import captions, folders, formats, label_names, places
from prismer_jax.datasets.packed import Packed
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.labels import EXPERTS, select

Example = dict[str, Any]
Path = str | os.PathLike
Task = Literal["caption", "question", "all"]

logger = logging.getLogger(__name__)


def load(
    path: Path | Sequence[Path] | None = None,
    *,
    images: Path | Sequence[Path] | None = None,
    labels: Path | None = None,
    questions: Path | None = None,
    annotations: Path | Sequence[Path] | None = None,
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
    if labels is not None and "{expert}" not in os.fspath(labels) and not os.path.isdir(labels):
        raise UserError(f"{labels}: no such folder of labels. Leave `labels` out for photos without labels.")
    places.look_anew()
    dropped = Dropped()
    if path is None:
        if not images:
            raise UserError("Give `path` (a list) or `images` (a folder of photos, or files).")
        if annotations is not None or split is not None or task == "question":
            raise UserError("Photos without a list have no questions and no splits; give `path`.")
        roots = _several(images)
        where, task = ", ".join(map(str, roots[:3])), task or "caption"
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
        gathered = _Gatherer(source, dropped, max_missing)
        gathered.add_all(paths, roots, _several(annotations), split)
        photos = gathered.photos(where)
        if labels is not None:
            photos = list(label_names.distinct(photos, labels, dropped))
        task = _task_of(task, photos, where)
        _say_what_lacks(task, photos, where)
        photos = photos if task == "question" else photos[:limit]
    experts = select(experts)
    opened = Source(photos, task, None if labels is None else os.fspath(labels), experts, dropped, limit)
    if path is not None:
        opened.files = [*paths, *_several(annotations)]
    for line in dropped.lines():  # now that folders have been searched, too
        logger.warning("%s: left out: %s.", where, line.strip().rstrip("."))
    if not len(opened):
        raise UserError(f"{where}: lists no photos.")
    return opened


class Source:
    """Examples of photos: `len(source)`, `source[i]`. Cheap to pickle.

    Attributes:
      dropped: what was left out when it was opened; further samples turn out to be bad when they are read.
      files: the lists that it was read from, if there are any.
    """

    def __init__(
        self,
        photos: Iterable[Example],
        task: Task,
        labels: str | None,
        experts: Sequence[str],
        dropped: Dropped,
        limit: int | None = None,
    ) -> None:
        """Args:
        photos: dicts with `id`, `name`, `image`, `source`; and if they have it, `dataset`, `captions` or
          `captions_file`, `questions`, and what is passed on as it is. A sequence is kept, anything else packed; one
          that is to be asked about may say in `questions` how many each photo has, so that none is read before.
        task: what an item is.
        labels: folder of label files.
        experts: whose label files are looked for.
        dropped: the report.
        limit: of the task 'question': so many, the first ones.
        """
        self.files: list[Path] = []
        self._items: np.ndarray | None = None
        self._texts: int | None = None
        if task == "caption" and isinstance(photos, list):
            self._texts = sum(max(1, len(photo["captions"])) for photo in photos)
        if task == "question":
            if (counts := getattr(photos, "questions", None)) is None:
                photos = list(photos)
                counts = [len(photo["questions"]) for photo in photos]
            pairs = [(i, j) for i, count in enumerate(counts) for j in range(count)]
            self._items = np.asarray(pairs[:limit], np.int32).reshape(-1, 2)
        self._photos = photos if isinstance(photos, Sequence) and not isinstance(photos, list) else _Photos(photos)
        self._task, self._labels, self._experts, self.dropped = task, labels, experts, dropped

    def __len__(self) -> int:
        return len(self._photos) if self._items is None else len(self._items)

    @property
    def fingerprint(self) -> str | None:
        """Returns a digest of the lists, or of what the tars hold; None of folders. See data_seen.py."""
        return _digest(self.files) if self.files else getattr(self._photos, "fingerprint", None)

    @property
    def texts(self) -> int:
        """Returns how many captions, or questions, all items have: an epoch has each once on average."""
        return len(self) if self._texts is None else self._texts

    def name(self, index: int) -> str:
        """Returns what the label files of an item's photo are called, without reading the photo."""
        return self._photos.name(index if self._items is None else int(self._items[index, 0]))

    def __getitem__(self, index: int) -> Example:
        number, question = (index, None) if self._items is None else map(int, self._items[index])
        example = self._photos[number]
        name, dataset, source = example.pop("name"), example.pop("dataset", None), example.pop("source")
        questions = example.pop("questions", [])
        if question is not None:
            example.pop("captions", None)
            asked = questions[question]
            # Questions of one photo are no independent samples: evaluations must know it.
            photo = name if isinstance(example["image"], bytes) else example["image"]
            id = asked.get("question_id", f"{example['id']}#{question}")
            example |= {"id": str(id), "photo": photo, **asked}
        elif file := example.pop("captions_file", None):
            example["captions"], lost = captions.read(file)
            if lost:
                example["left_out"] = [(lost, file)]
        else:
            example.setdefault("captions", [])
        if self._task == "all":
            example |= {"name": name, "source": source, "questions": questions}
        else:
            example.pop("left_out", None)
        if self._labels is not None:
            folder = self._labels.replace("{dataset}", str(dataset or source))
            example.update(label_files.locate(folder, self._experts, name))
        return example


class _Photos(Packed):
    """Photos of lists and folders."""

    def name(self, index: int) -> str:
        return self[index]["name"]


class _Gatherer:
    """Joins what the rows of lists say of each photo."""

    def __init__(self, source: str | None, dropped: Dropped, max_missing: float) -> None:
        self._source, self._dropped, self._max_missing = source, dropped, max_missing
        self._by_path: dict[str, Example] = {}  # by places.identity, in order
        self._ids: dict[str, str] = {}  # of a photo -> list that it is in
        self._missing: dict[str, None] = {}  # paths, in order

    def add_all(self, paths: Sequence[Path], roots: Sequence[Any], answers: Sequence[Path], split: str | None) -> None:
        """Adds what lists say; a file of `answers` goes with each list that has questions without.

        Raises:
          UserError: as `add`, or there are more or fewer files of answers than such lists.
        """
        asking = 0
        for number, path in enumerate(paths):
            with _no_collection():
                content = formats.read(path)
                wants = bool(answers) and formats.wants_annotations(content)
                annotations = answers[asking] if wants and asking < len(answers) else None
                self.add(path, content, roots[number % len(roots)], annotations, split)
                del content
            asking += wants
        if answers and not asking:
            raise UserError(f"{paths[0]}: has its answers inside; leave `annotations` out.")
        if answers and asking != len(answers):
            raise UserError(f"{asking} lists of questions, but {len(answers)} files of annotations for them.")

    def add(self, path: Path, content: Any, images: Path | None, annotations: Path | None, split: str | None) -> None:
        """Adds what a list says.

        Raises:
          UserError: it is of no known layout, or more than a fraction of `max_missing` of it cannot be used.
        """
        path = pathlib.Path(path).expanduser()
        finder = places.Places(path, images, self._source)
        photos: dict[tuple[str | None, str], Example | None] = {}  # a place is looked for once
        questions = _Questions()
        left_out, unusable = formats.LeftOut(), Dropped()
        rows = texts = 0
        for row in formats.rows(path, annotations, split, left_out, content):
            rows += 1
            key = row.dataset, row.image
            if key not in photos:
                photos[key] = self._photo(row, finder, path)
            photo = photos[key]
            if photo is None:
                continue
            texts += len(row.captions)
            captions = [
                text
                for text in row.captions
                if _is_plain(text) or self._usable(text, "caption", f"{path}: of photo {row.image}", unusable)
            ]
            if row.question is None:
                photo["captions"] += captions
                continue
            photo["captions"] += [text for text in captions if text not in photo["captions"]]  # beside each question
            texts += 1
            question, answers = row.question["question"], set(row.question["answers"])
            if not (_is_plain(question) and all(map(_is_plain, answers))):
                said = [("question", question), *(("answer", answer) for answer in answers)]
                where = f"{path}: of photo {row.image}"
                if not all(self._usable(text, what, where, unusable) for what, text in said):
                    continue
            questions.add(photo, row, path, unusable)
        questions.warn(path)
        self._dropped.update(left_out.texts)
        self._leave_out(path, left_out.entries, rows + left_out.entries.total, "entries")
        self._leave_out(path, unusable, texts, "texts")

    def _leave_out(self, path: pathlib.Path, unusable: Dropped, total: int, what: str) -> None:
        """Reports what of a list cannot be used, or refuses the list for it."""
        count = unusable.total
        if count > self._max_missing * total or (what == "entries" and 0 < count == total):
            reason = unusable.lines()[0].strip().rstrip(".")
            more = f" Mend them, or allow more with max_missing (now {self._max_missing})." if count < total else ""
            raise UserError(f"{path}: {count} of {total} {what} cannot be used: {reason}.{more}")
        self._dropped.update(unusable)

    def photos(self, where: str) -> list[Example]:
        """Returns all photos that are there.

        Raises:
          UserError: more than a fraction of `max_missing` are not.
        """
        missing, there = list(self._missing), list(self._by_path.values())
        total = len(missing) + len(there)
        if missing and (len(missing) > self._max_missing * total or not there):
            raise UserError(
                f"{where}: {len(missing)} of {total} photos are missing, the first is {missing[0]}. Check `images`"
                + (f", or allow more with max_missing (now {self._max_missing})." if there else ".")
            )
        return there

    def _photo(self, row: formats.Row, finder: places.Places, path: pathlib.Path) -> Example | None:
        """Returns the photo of a row that is the first of its image in this list; None if it cannot be used."""
        if not self._usable(row.image, "file name", str(path)):
            return None
        place = finder.find(row)
        if not place.there:
            if place.path not in self._missing:
                self._missing[place.path] = None
                self._dropped.add("missing photo", place.path)
            return None
        if place.file in self._by_path:
            return self._by_path[place.file]
        source = self._source or place.dataset or path.stem
        id, owner = row.id or place.name, str(path)
        if id in self._ids:  # different data sets, or merged lists, may count or call their photos alike
            id = place.path if f"{source}/{id}" in self._ids else f"{source}/{id}"
        self._ids[id] = owner
        photo = {"id": id, "name": place.name, "image": place.path, "source": source, "captions": [], "questions": []}
        if place.dataset:
            photo["dataset"] = place.dataset
        self._by_path[place.file] = photo | row.texts
        return self._by_path[place.file]

    def _usable(self, text: Any, what: str, where: str, dropped: Dropped | None = None) -> bool:
        """Returns whether a value is a text that can be stored; counts those that are not."""
        dropped = self._dropped if dropped is None else dropped
        if not isinstance(text, str) and not formats.is_empty(text):
            dropped.add(f"{what} that is not a text", f"{where}: {text!r}")
            return False
        if text is None or (what != "answer" and not str(text).strip()) or text != text:
            dropped.add(f"empty {what}", where)  # but an annotator of VQAv2 may say nothing
            return False
        try:
            text.encode()
        except UnicodeEncodeError:
            dropped.add(f"{what} that is not UTF-8", f"{where}: {text!r}")
            return False
        return True


def _is_plain(text: Any) -> bool:
    """Returns whether a value is a text of ASCII with something in it: most are, and need no closer look."""
    return type(text) is str and text.isascii() and bool(text) and not text.isspace()


class _Questions:
    """Adds the questions of one list to their photos, and tells by their ids which are one.

    A question id that several questions have is none: the ids of own lists restart in each photo, and those of merged
    files in each file. These questions are called by their photo instead.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[str | None, str], tuple[Example, Example]] = {}  # by id: of which photo, what
        self._others: dict[tuple[str | None, str, str, str], Example] = {}  # with the id of another; by photo and text
        self._clashes: list[str] = []

    def add(self, photo: Example, row: formats.Row, path: Path, dropped: Dropped) -> None:
        question = row.question
        if "question_id" not in question:
            photo["questions"].append(question)
            return
        id = formats.id_text(question["question_id"])
        owner, same = self._first.setdefault((row.dataset, id), (photo, question))
        if same is question:
            photo["questions"].append(question)
            return
        if owner is not photo or same["question"] != question["question"]:
            for one in (same, question):
                one.pop("question_id", None)
            same = self._others.setdefault((row.dataset, id, photo["image"], question["question"]), question)
            if same is question:
                self._clashes.append(id)
                photo["questions"].append(question)
                return
        if not _add_answer(same, question):
            dropped.add("duplicate question", f"{path}: question {id}")

    def warn(self, path: pathlib.Path) -> None:
        if self._clashes:
            logger.warning(
                "%s: %d questions have the id of another, such as %s: all of these are called PHOTO#NUMBER instead.",
                path,
                len(self._clashes),
                self._clashes[0],
            )


def _add_answer(question: Example, more: Example) -> bool:
    """Adds `more` where it is another answer to the question (the official lists have a row for each); says whether."""
    answers, new = ({*one["answers"]} for one in (question, more))
    if len(new) != 1 or new <= answers:
        return False
    if "answer_weights" not in question:
        question["answers"], question["answer_weights"] = [question["answers"][0]], [question.pop("weight", 1.0)]
    question["answers"] += new
    question["answer_weights"].append(more.get("weight", 1.0))
    return True


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from looking through a long list again and again: it has no circles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _digest(paths: Sequence[Path]) -> str:
    """Returns a digest of the bytes of files."""
    whole = hashlib.sha256()
    for path in paths:
        with open(os.path.expanduser(path), "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | os.PathLike) else list(value)


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
