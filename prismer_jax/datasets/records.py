"""The schema of one record of a data set: a photo with its labels, captions and questions, in a TFDS ArrayRecord shard.

Photo and label maps are stored as they were encoded (JPEG, PNG), so that neither writing nor reading needs TensorFlow.
A label that a photo lacks is stored as zero bytes. What varies in number is stored flat, for TFDS reads ragged features
through TensorFlow only: the answers of all questions lie one after the other, and `answer_counts` says how many
belong to which question.

Records are read with the protocol buffer definition that TFDS ships: the same fields as through `tfds.load`, in a
quarter of its time, for only the wanted ones become Python objects.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.labels import CLASSES_KEY, EXPERTS, FEATURES, WORDS_KEY, no_classes, no_words

Example = dict[str, Any]
Task = Literal["caption", "question", "all"]


def features(experts: Sequence[str] = tuple(EXPERTS)):
    """The `tfds.features.FeaturesDict` of a data set whose photos carry these experts' labels."""
    import tensorflow_datasets as tfds  # takes half a second, and a reader needs only its protocol buffers

    tf = tfds.features
    labels: dict[str, Any] = {
        name: tf.Image(shape=(None, None, EXPERTS[name].channels), encoding_format="png") for name in experts
    }
    if "obj_detection" in experts:
        labels["obj_detection_classes"] = tf.Sequence(np.int32)
    if "ocr_detection" in experts:
        labels["ocr_detection_features"] = tf.Tensor(shape=(None, FEATURES), dtype=np.float16, encoding="bytes")
        labels["ocr_detection_words"] = tf.Sequence(tf.Text())
    return tf.FeaturesDict(
        {
            "id": tf.Text(),
            "image": tf.Image(shape=(None, None, 3)),
            "labels": labels,
            "captions": tf.Sequence(tf.Text()),
            "weight": np.float32,
            "questions": tf.Sequence(tf.Text()),
            "question_types": tf.Sequence(tf.Text()),
            "question_ids": tf.Sequence(np.int64),
            "answer_counts": tf.Sequence(np.int64),
            "answers": tf.Sequence(tf.Text()),
            "answer_weights": tf.Sequence(np.float32),
        }
    )


def encode(
    *,
    id: str,
    image: bytes,
    labels: dict[str, bytes],
    experts: Sequence[str] = tuple(EXPERTS),
    classes: Sequence[int] = (),
    word_features: np.ndarray | None = None,
    words: Sequence[str] = (),
    captions: Sequence[str] = (),
    questions: Sequence[dict[str, Any]] = (),
    weight: float = 1.0,
) -> dict[str, Any]:
    """One example as the features above want it.

    Args:
      id: of the photo.
      image: the encoded photo.
      labels: expert name -> PNG bytes; experts that are not there are stored as missing.
      experts: those of the data set.
      classes: the class of detected instance 0, 1, ...
      word_features, words: [n, 64] and texts of the words in the picture.
      captions: any number.
      questions: dicts with `question`, `answers`, `question_id` and, if known, `answer_weights` (one an answer) and
        `question_type`.
      weight: of the example in the loss.
    """
    stored: dict[str, Any] = {name: labels.get(name, b"") for name in experts}
    if "obj_detection" in experts:
        stored["obj_detection_classes"] = np.asarray(classes, np.int32)
    if "ocr_detection" in experts:
        table = np.zeros((0, FEATURES)) if word_features is None else word_features
        stored["ocr_detection_features"] = np.asarray(table, np.float16)
        stored["ocr_detection_words"] = list(words)
    return {
        "id": id,
        "image": image,
        "labels": stored,
        "captions": list(captions),
        "weight": np.float32(weight),
        "questions": [q["question"] for q in questions],
        "question_types": [q.get("question_type", "") for q in questions],
        "question_ids": [q["question_id"] for q in questions],
        "answer_counts": [len(q["answers"]) for q in questions],
        "answers": [answer for q in questions for answer in q["answers"]],
        "answer_weights": [w for q in questions for w in q.get("answer_weights", [1.0] * len(q["answers"]))],
    }


def decode(record: bytes, question: int | Literal["all"] | None = None) -> Example:
    """The example of a record: with its captions, with one of its questions, or with all of both.

    Returns a dict with `id`, `image`, `weight`, the labels that are there, and
      question None: `captions`;
      question i: `question`, `answers`, `answer_weights`, `question_type`, `question_id`;
      question 'all': `captions`, and `questions`, a list of dicts with those five.
    """
    feature = _message().FromString(record).features.feature
    example: Example = {"id": feature["id"].bytes_list.value[0].decode(), "image": feature["image"].bytes_list.value[0]}
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
        example |= _question(feature, question)
    return example


def _question(feature: Any, index: int) -> dict[str, Any]:
    counts = feature["answer_counts"].int64_list.value
    start = sum(counts[:index])
    answers = slice(start, start + counts[index])
    return {
        "question": feature["questions"].bytes_list.value[index].decode(),
        "answers": [text.decode() for text in feature["answers"].bytes_list.value[answers]],
        "answer_weights": list(feature["answer_weights"].float_list.value[answers]),
        "question_type": feature["question_types"].bytes_list.value[index].decode(),
        "question_id": feature["question_ids"].int64_list.value[index],
    }


class Source:
    """Random access to the records of a finished data set.

    Task 'caption' has one item a record, with its captions; 'question' one item a question; 'all' one item a record
    with all of both. Cheap to pickle; the shards are opened on first use, in whichever process that is.
    """

    def __init__(self, folder: str | os.PathLike, task: Task = "caption", questions: int = 0):
        """Args:
          folder: holds the shards.
          task: what an item is.
          questions: that each record has; needed for the task 'question'.

        Raises:
          UserError: there are no shards in `folder`.
        """
        self.paths = sorted(str(path) for path in pathlib.Path(folder).glob("*.array_record*"))
        self.task = task
        self.per_record = questions if task == "question" else 1
        if not self.paths:
            raise UserError(f"{folder}: holds no ArrayRecord shards. Delete it, so that it is built again.")

    @functools.cached_property
    def _records(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    def __len__(self) -> int:
        return len(self._records) * self.per_record

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        record, question = divmod(int(index), self.per_record)
        return decode(self._records[record], {"caption": None, "question": question, "all": "all"}[self.task])


@functools.cache
def _message():
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example
