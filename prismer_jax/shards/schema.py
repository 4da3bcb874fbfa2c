"""The schema of a record: a photo with its labels, captions and questions, in a TFDS ArrayRecord shard.

Photos are stored as they were encoded (JPEG, say) and label maps as PNG, so that neither writing nor reading needs
TensorFlow; the maps' PNG is not compressed, for the shard is (label_rows.py).
A label that a photo lacks is stored as zero bytes. What varies in number is stored flat, for TFDS reads ragged features
through TensorFlow only: the answers of all questions lie one after the other, and `answer_counts` says how many
belong to which question.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prismer_jax.labels import EXPERTS, FEATURES
from prismer_jax.shards.records import NO_ID, TEXTS


def features(experts: Sequence[str] = tuple(EXPERTS)):
    """The `tfds.features.FeaturesDict` of a data set whose photos carry these experts' labels."""
    import tensorflow_datasets as tfds  # takes half a second

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
            **{key: tf.Text() for key in TEXTS},
            "image": tf.Image(shape=(None, None, 3)),
            "labels": labels,
            "captions": tf.Sequence(tf.Text()),
            "weight": np.float32,
            "questions": tf.Sequence(tf.Text()),
            "question_types": tf.Sequence(tf.Text()),
            "answer_types": tf.Sequence(tf.Text()),  # one a question
            "question_ids": tf.Sequence(np.int64),
            "question_names": tf.Sequence(tf.Text()),  # ids that are texts or no int64, '' beside a number
            "question_weights": tf.Sequence(np.float32),
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
    **texts: str,
) -> dict[str, Any]:
    """Returns one example as the features above want it.

    Args:
      id: of the photo.
      image: the encoded photo.
      labels: expert name -> PNG bytes; experts that are not there are stored as missing.
      experts: those of the data set.
      classes: the class of detected instance 0, 1, ...
      word_features, words: [n, 64] and texts of the words in the picture.
      captions: any number.
      questions: dicts with `question`, `answers` and, if known, `answer_weights` (one an answer), `question_type`,
        `answer_type`, `question_id`, and `weight` in the loss.
      weight: of the photo in the loss.
      **texts: any of TEXTS: `name` (what the photo's label files are called), `source` (its data set), `domain`,
        `class_name`.
    """
    if unknown := texts.keys() - set(TEXTS):
        raise TypeError(f"{sorted(unknown)[0]!r} is none of {TEXTS}")
    stored: dict[str, Any] = {name: labels.get(name, b"") for name in experts}
    if "obj_detection" in experts:
        stored["obj_detection_classes"] = np.asarray(classes, np.int32)
    if "ocr_detection" in experts:
        table = np.zeros((0, FEATURES)) if word_features is None else word_features
        stored["ocr_detection_features"] = np.asarray(table, np.float16)
        stored["ocr_detection_words"] = list(words)
    ids = [q.get("question_id") for q in questions]
    are_numbers = [isinstance(key, int) and key != NO_ID and -(2**63) <= key < 2**63 for key in ids]
    return {
        "id": id,
        **{key: texts.get(key, "") for key in TEXTS},
        "image": image,
        "labels": stored,
        "captions": list(captions),
        "weight": np.float32(weight),
        "questions": [q["question"] for q in questions],
        "question_types": [q.get("question_type", "") for q in questions],
        "answer_types": [q.get("answer_type", "") for q in questions],
        "question_ids": [key if fits else NO_ID for key, fits in zip(ids, are_numbers, strict=True)],
        "question_names": ["" if fits or key is None else str(key) for key, fits in zip(ids, are_numbers, strict=True)],
        "question_weights": [q.get("weight", 1.0) for q in questions],
        "answer_counts": [len(q["answers"]) for q in questions],
        "answers": [answer for q in questions for answer in q["answers"]],
        "answer_weights": [w for q in questions for w in q.get("answer_weights", [1.0] * len(q["answers"]))],
    }


@functools.cache
def serializer(experts: tuple[str, ...]) -> Callable[[dict[str, Any]], bytes]:
    """Returns a function from what `encode` returns to the bytes of a record as TFDS writes them, always the same."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    schema = features(experts)
    proto = ExampleSerializer(schema.get_serialized_info())
    return lambda example: proto.get_tf_example(schema.encode_example(example)).SerializeToString(deterministic=True)
