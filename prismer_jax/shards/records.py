"""Reading the records of a data set: a photo each, with its labels, captions and questions, as schema.py lays them out.

They are read with the protocol buffer definition that TFDS ships: the same fields as through `tfds.load`, in a quarter
of its time, for only the wanted ones become Python objects.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, Literal

import numpy as np

from prismer_jax.errors import UserError, choose
from prismer_jax.files import storage
from prismer_jax.labels import CLASSES_KEY, EXPERTS, FEATURES, WORDS_KEY, no_classes, no_words
from prismer_jax.shards import manifest as manifests
from prismer_jax.shards.reader import Shards

Example = dict[str, Any]
Task = Literal["caption", "question", "all"]
TASKS = ("caption", "question", "all")

TEXTS = ("name", "source", "domain", "class_name")  # of a photo; an empty one counts as absent
NO_ID = -1  # of a question whose list gives none


def decode(record: bytes, question: int | Literal["all"] | None = None) -> Example:
    """Returns the example of a record: with its captions, with one of its questions, or with all of both.

    Returns a dict with `id`, `image`, `weight`, those of TEXTS and the labels that are there, and
      question None: `captions`;
      question i: `question`, `answers`, `answer_weights`, `question_type`, `weight`, and `question_id` if it has one;
      question 'all': `captions`, and `questions`, a list of dicts with those six.
    """
    feature = _message().FromString(record).features.feature
    example: Example = {"id": feature["id"].bytes_list.value[0].decode(), "image": feature["image"].bytes_list.value[0]}
    for key in TEXTS:
        if key in feature and (text := feature[key].bytes_list.value[0]):
            example[key] = text.decode()
    for name in EXPERTS:
        key = f"labels/{name}"
        if key in feature and (png := feature[key].bytes_list.value[0]):
            example[key] = png
    if "labels/obj_detection" in example:
        example[CLASSES_KEY] = table = no_classes()
        classes = feature[CLASSES_KEY].int64_list.value
        table[: len(classes)] = classes
    if "labels/ocr_detection" in example:
        example[WORDS_KEY] = words = no_words()
        stored = np.frombuffer(feature[WORDS_KEY].bytes_list.value[0], np.float16).reshape(-1, FEATURES)
        words[: len(stored)] = stored
        example["words"] = [text.decode() for text in feature["labels/ocr_detection_words"].bytes_list.value]
    example["weight"] = feature["weight"].float_list.value[0]
    if question is None or question == "all":
        example["captions"] = [text.decode() for text in feature["captions"].bytes_list.value]
    if question == "all":
        count = len(feature["questions"].bytes_list.value)
        example["questions"] = [_question(feature, i) for i in range(count)]
    elif question is not None:
        weight = example["weight"]
        example |= _question(feature, question)
        example["weight"] *= weight
    return example


def _question(feature: Any, index: int) -> dict[str, Any]:
    counts = feature["answer_counts"].int64_list.value
    start = sum(counts[:index])
    answers = slice(start, start + counts[index])
    weights = feature["question_weights"].float_list.value  # none in data sets written before November 2026
    question = {
        "question": feature["questions"].bytes_list.value[index].decode(),
        "answers": [text.decode() for text in feature["answers"].bytes_list.value[answers]],
        "answer_weights": list(feature["answer_weights"].float_list.value[answers]),
        "question_type": feature["question_types"].bytes_list.value[index].decode(),
        "weight": weights[index] if weights else 1.0,
    }
    # Data sets have none that were written before kinds of answers and ids that are texts could be stored.
    kinds, names = (feature[key].bytes_list.value for key in ("answer_types", "question_names"))
    if kinds and kinds[index]:
        question["answer_type"] = kinds[index].decode()
    id = (names[index].decode() if names else "") or feature["question_ids"].int64_list.value[index]
    if id != NO_ID:
        question["question_id"] = id
    return question


@functools.cache
def _message():
    """Returns the class of a record. It is called before there are threads: two must not import it at once.

    On Python 3.11 they can wait for each other forever: tensorflow-datasets 4.9.10 imports through etils' lazy modules,
    whose functools.cached_property holds a lock there, beside that of the import.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def load(path: storage.PathLike, task: Task = "caption", *, limit: int | None = None) -> Source:
    """Returns a finished data set that `python -m tools.build_dataset` wrote.

    Args:
      path: its folder, local or remote (gs://..., whatever fsspec reaches).
      task: what an item is, see `Source`.
      limit: only so many items, the first ones.

    Raises:
      UserError: it is not finished, damaged, or has nothing for the task.
    """
    choose("task", task, TASKS)
    folder = storage.plain(path)
    if storage.size(storage.join(folder, manifests.FILE)) is None:
        raise UserError(
            f"{folder}: has no {manifests.FILE}: no finished data set. Run python -m tools.build_dataset with --output "
            f"{folder} (again: it goes on where it stopped)."
        )
    source = Source(folder, task, limit=limit)
    if not len(source):
        raise UserError(f"{folder}: has nothing for the task {task!r}.")
    return source


class Source:
    """Random access to the records of a data set.

    Task 'caption' has one item a record that has captions, or one for each if none has any; 'question' one item a
    question; 'all' one item a record with all of both. Cheap to pickle; the shards are opened on first use, in
    whichever process that is.
    """

    def __init__(
        self, folder: storage.PathLike, task: Task = "caption", questions: int | None = None, limit: int | None = None
    ) -> None:
        """Args:
          folder: holds the shards, and a manifest or nothing else.
          task: what an item is.
          questions: that each record has; needed for the task 'question' where there may be no manifest. The size of
            such a data set is its number of items, as if there were none.
          limit: only so many items, the first ones.

        Raises:
          UserError: there are no shards in `folder`.
        """
        self.folder, self.task, self.limit, self._questions = storage.plain(folder), task, limit, questions
        self._shards  # noqa: B018  a folder without shards is an error here and now
        _message()

    @functools.cached_property
    def _shards(self) -> Shards:
        return Shards(self.folder)

    @property
    def manifest(self) -> manifests.Manifest | None:
        """The manifest of the data set, if it has one."""
        return self._shards.manifest

    @property
    def fingerprint(self) -> str | None:
        """Returns a digest of the shards' own, if there is a manifest; it is how a run tells that its data changed."""
        if self.manifest is None:
            return None
        return hashlib.sha256("".join(row.sha256 for row in self.manifest.shards).encode()).hexdigest()

    @functools.cached_property
    def _captioned(self) -> np.ndarray | None:
        """The records with captions, where some have and some have not; else None."""
        if self.task != "caption" or self.manifest is None:
            return None
        has = np.concatenate([row.of_records("captions") > 0 for row in self.manifest.shards])
        return None if has.all() or not has.any() else np.flatnonzero(has)

    @functools.cached_property
    def _ends(self) -> np.ndarray | None:
        """Where the questions of each record end; None where an item is a record."""
        if self.task != "question":
            return None
        if self._questions is not None:
            return np.arange(1, len(self._shards) + 1) * self._questions
        return np.cumsum(np.concatenate([row.of_records("questions") for row in self.manifest.shards]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _message()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_shards", "_captioned", "_ends")}

    def __len__(self) -> int:
        if self._ends is not None:
            count = int(self._ends[-1])
        else:
            count = len(self._shards if self._captioned is None else self._captioned)
        return count if self.limit is None else min(count, self.limit)

    @property
    def texts(self) -> int:
        """Captions, or questions, of all items: an epoch has each of them once on average."""
        if self.task != "caption" or self.limit is not None or self._questions is not None or self.manifest is None:
            return len(self)
        return max(len(self), sum(row.total("captions") for row in self.manifest.shards))

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        if self._ends is not None:
            record = int(np.searchsorted(self._ends, index, side="right"))
            before = self._ends[record - 1] if record else 0
            return decode(self._shards[record], int(index - before))
        record = index if self._captioned is None else int(self._captioned[index])
        return decode(self._shards[record], "all" if self.task == "all" else None)
