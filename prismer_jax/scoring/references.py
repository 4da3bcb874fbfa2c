"""What predictions are scored by: the captions, answers or classes of lists, found by id or by photo and question."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from prismer_jax.datasets import formats
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.scoring.predictions import Prediction, Task, encoded

TYPES = ("question_type", "answer_type")


@dataclasses.dataclass
class Reference:
    """What is known of a photo, or of a question about it.

    Attributes:
      place: in the order of the lists.
      id: in results.
      image: the photo's path as its list has it.
      texts: captions, answers or the class.
      type, question, answer_type: as in the records of evaluators.
    """

    place: int
    id: int | str
    image: str
    texts: list[str]
    type: str = ""
    question: str | None = None
    answer_type: str = ""

    def record(self) -> dict[str, Any]:
        """Returns the fields of an evaluator's record."""
        about = {"index": self.place, "id": self.id, "photo": self.image, "type": self.type, "question": self.question}
        return {**about, "answer_type": self.answer_type, "references": self.texts, "blank": None}

    def __str__(self) -> str:
        return f"{self.id!r} ({self.image}{'' if self.question is None else f', {self.question!r}'})"


class References:
    """The references of lists.

    Attributes:
      entries: in the lists' order.
      has_questions: whether they are of questions, and not of photos.
      where, noun, hint: for messages: the lists, what they should hold, and what may help where they do not.
    """

    def __init__(
        self, paths: Sequence[pathlib.Path], annotations: Sequence[pathlib.Path], split: str | None, task: Task
    ) -> None:
        """Reads the lists.

        Args:
          paths: lists of a layout that `datasets/formats` reads.
          annotations: a file of answers for each of them, or none.
          split: as in `formats.rows`.
          task: what they are for.

        Raises:
          UserError: a list cannot be read, or an id is that of two photos or questions.
        """
        if annotations and len(annotations) != len(paths):
            raise UserError(f"{len(paths)} lists of references, but {len(annotations)} files of annotations for them.")
        self._task, self.where = task, ", ".join(map(str, paths))
        self.noun = {"caption": "captions", "vqa": "answers", "choice": "classes or answers"}[task]
        self.hint = "Give the file of answers with --annotations." if not annotations and task != "caption" else ""
        self.entries: list[Reference] = []
        self._by_id: dict[str, Reference] = {}
        self._by_photo: dict[tuple[str, str | None], Reference] = {}
        self._names: dict[str, set[str]] = defaultdict(set)  # file name -> the paths that end with it
        left_out = formats.LeftOut()
        for path, answers in zip(paths, annotations or [None] * len(paths), strict=True):
            for row in formats.rows(path, answers, split, left_out):
                if _is_storable(row, left_out.entries):
                    self._add(row, path)
        for part in (left_out.entries, left_out.texts):
            part.warn(self.where)

    def find(self, prediction: Prediction) -> Reference | None:
        """Returns the reference of a prediction; None if there is none, or more than one photo may be meant."""
        asked = prediction.entry.get("question")
        for key in ("question_id",) if self.has_questions else ("image_id", "id"):
            if (id := prediction.id(key)) is not None:
                return self._by_id.get(id) or (None if self.has_questions else self._of_photo(id, None))
        image = prediction.entry.get("image")
        return self._of_photo(image, asked if self.has_questions else None) if isinstance(image, str) else None

    @property
    def has_questions(self) -> bool:
        return any(reference.question is not None for reference in self.entries[:1])

    def _of_photo(self, image: str, asked: str | None) -> Reference | None:
        image = os.path.normpath(image)
        if (image, asked) not in self._by_photo:
            paths = [path for path in self._names[os.path.basename(image)] if _is_end(path, image)]
            if len(paths) != 1:
                return None
            image = paths[0]
        return self._by_photo.get((image, asked))

    def _add(self, row: Any, path: pathlib.Path) -> None:
        """Adds what a row says: to the reference of its photo or question, or as a new one."""
        asked = None if self._task == "caption" else row.question
        if asked is None and self._task == "vqa":
            return
        image = os.path.normpath(os.path.join(row.dataset or "", row.image))
        id, question = (row.id, None) if asked is None else (asked.get("question_id"), asked["question"])
        same = None if id is None else self._by_id.get(str(id))
        if same is None and (asked is None or id is None):
            same = self._by_photo.get((image, question))
        elif same is not None and (same.image, same.question) != (image, question):
            both = f"{same} and of {image}{'' if question is None else f', {question!r}'}"
            raise UserError(f"{path}: the id {id!r} is of {both}. To be scored by, ids must be unique.")
        texts = self._texts(row)
        if same is None:
            kind, more = (row.texts.get("domain"), None) if asked is None else map(asked.get, TYPES)
            name = image if id is None else id if asked else _number(id)
            same = Reference(len(self.entries), name, image, [], kind or "", question, more or "")
            self.entries.append(same)
            self._by_photo.setdefault((image, question), same)
            self._names[os.path.basename(image)].add(image)
        same.texts += texts
        self._by_id[str(image if id is None else id)] = same

    def _texts(self, row: Any) -> Sequence[str]:
        """Returns the texts of a row. An annotator of VQAv2 may say nothing; a caption that says nothing is none."""
        if self._task == "caption":
            return [text for text in row.captions if isinstance(text, str) and text.strip()]
        if self._task == "choice" and (name := row.texts.get("class_name")):
            return [name]
        return row.question["answers"] if row.question else ()


def _is_storable(row: formats.Row, dropped: Dropped) -> bool:
    """Returns whether results can hold what a row says; leaves captions out of it that they cannot, and counts both."""

    def holds(value: Any, what: str) -> bool:
        try:
            return bool(encoded(value))
        except UnicodeEncodeError:
            dropped.add(f"{what} that is not UTF-8", ascii(row.image))
            return False

    row.captions = [text for text in row.captions if not isinstance(text, str) or holds(text, "caption")]
    return holds([row.image, row.dataset, row.id, row.texts, row.question], "question" if row.question else "entry")


def _number(id: int | str) -> int | str:
    """Returns the id of a photo, which lists hand on as a text, as a number where it is written as one."""
    return int(id) if isinstance(id, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", id) else id


def _is_end(one: str, other: str) -> bool:
    """Returns whether one path is the end of the other, by whole names: val/1.jpg of data/val/1.jpg."""
    a, b = pathlib.PurePath(one).parts, pathlib.PurePath(other).parts
    short = min(len(a), len(b))
    return a[-short:] == b[-short:]
