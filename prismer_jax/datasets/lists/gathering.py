"""What the rows of lists say of each photo, joined: its captions and questions, of one list or of several."""

from __future__ import annotations

import contextlib
import gc
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from prismer_jax.datasets import formats, photo_paths
from prismer_jax.datasets.lists.source import Example
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.storage import PathLike

logger = logging.getLogger(__name__)


class Gatherer:
    """Joins what the rows of lists say of each photo."""

    def __init__(self, source: str | None, dropped: Dropped, max_missing: float) -> None:
        self._source, self._dropped, self._max_missing = source, dropped, max_missing
        self._allow_more = f"allow more with max_missing (now {max_missing}) wherever this list is read."
        self._by_path: dict[str, Example] = {}  # by photo_paths.identity, in order
        self._ids: dict[str, str] = {}  # of a photo -> list that it is in
        self._missing: dict[str, None] = {}  # paths, in order

    def add_all(
        self, paths: Sequence[PathLike], roots: Sequence[Any], answers: Sequence[PathLike], split: str | None
    ) -> None:
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

    def add(
        self, path: PathLike, content: Any, images: PathLike | None, annotations: PathLike | None, split: str | None
    ) -> None:
        """Adds what a list says.

        Raises:
          UserError: it is of no known layout, or more than a fraction of `max_missing` of it cannot be used.
        """
        path = pathlib.Path(path).expanduser()
        finder = photo_paths.PhotoFinder(path, images, self._source)
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
            for name, text in row.texts.items():
                photo.setdefault(name, text)
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
            more = f" Mend them, or {self._allow_more}" if count < total else ""
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
            check = "Fetch it with img2dataset, or check `images`" if "://" in missing[0] else "Check `images`"
            raise UserError(
                f"{where}: {len(missing)} of {total} photos are missing, the first is {missing[0]}. {check}"
                + (f", or {self._allow_more}" if there else ".")
            )
        return there

    def _photo(self, row: formats.Row, finder: photo_paths.PhotoFinder, path: pathlib.Path) -> Example | None:
        """Returns the photo of a row that is the first of its image in this list; None if it cannot be used."""
        if not self._usable(row.image, "file name", str(path)):
            return None
        place = finder.find(row)
        if not place.there:
            missing = row.image if "://" in row.image else place.path
            if missing not in self._missing:
                self._missing[missing] = None
                self._dropped.add("missing photo", missing)
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
        self._by_path[place.file] = photo
        return photo

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

    def add(self, photo: Example, row: formats.Row, path: PathLike, dropped: Dropped) -> None:
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
    if new and not answers:
        question |= {key: value for key, value in more.items() if key != "question_id"}
        return True
    if len(new) != 1 or new <= answers or (len(answers) > 1 and "answer_weights" not in question):
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
