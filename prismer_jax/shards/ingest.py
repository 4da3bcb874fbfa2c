"""From an example of a source to what a record stores: photo and labels are looked at once, here, and found good.

The photo stays as it was encoded where every reader can use it; only what is larger than wanted, or of a kind that does
not decode to RGB of 8 bits, is encoded again. Label maps are stored as PNG that the record file compresses.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from prismer_jax import label_png, label_rows, labels
from prismer_jax.errors import BadSample
from prismer_jax.pp import image
from prismer_jax.pp.labels import resample
from prismer_jax.shards.records import TEXTS

KEPT = ("JPEG", "PNG", "WEBP")  # formats that browsers, OpenCV, Pillow and TensorFlow all read or convert
QUALITY = 95  # of a photo that has to be encoded again

_decode = image.decode()


class Prepared(dict[str, Any]):
    """The arguments of `schema.encode` from a source that makes them itself: there is nothing to look at."""


def prepare(example: dict[str, Any] | BadSample, experts: Sequence[str], max_side: int | None = None) -> dict[str, Any]:
    """Returns the arguments of `schema.encode` for an example.

    Args:
      example: `Prepared`, or of the task 'all', see datasets/lists/: `image` (path or encoded bytes) and labels
        (paths, encoded bytes, or maps uint8 [h, w, c]).
      experts: whose labels are kept.
      max_side: a photo with a longer side is made smaller, and its labels with it; None keeps all.

    Raises:
      BadSample: the photo or a label cannot be used, or a text is no valid Unicode; or `example` is such an error.
    """
    if isinstance(example, BadSample):
        raise example
    if isinstance(example, Prepared):
        return example
    where = example["image"] if isinstance(example["image"], str) else f"image of example {example.get('id', '?')}"
    encoded = image.read_bytes(example["image"], where)
    photo = image.read_image(encoded, label_png.MAX_PIXELS, where)
    label_files = {key: example[key] for name in experts if (key := f"labels/{name}") in example}
    decoded = _decode({"id": example["id"], "image": photo, **label_files}, None)
    if max_side is not None and max(photo.shape[:2]) > max_side:
        photo = _shrink(photo, max_side)
        decoded |= resample(decoded, photo.shape[:2])
        encoded = _jpeg(photo)
    elif not _readable_by_all(encoded):
        encoded = _jpeg(photo)
    maps = {key.removeprefix("labels/"): decoded[key] for key in label_files}
    arguments = {
        "id": str(example["id"]),
        "image": encoded,
        "labels": {name: label_rows.encode(map) for name, map in maps.items()},
        "experts": tuple(experts),
        "captions": list(example.get("captions", ())),
        "questions": list(example.get("questions", ())),
        "weight": float(example.get("weight", 1.0)),
        **{key: str(example[key]) for key in TEXTS if example.get(key)},
    }
    if "obj_detection" in maps:
        table = np.asarray(example.get(labels.CLASSES_KEY, labels.no_classes()))
        arguments["classes"] = table[: np.flatnonzero(table >= 0).max(initial=-1) + 1]
    if "ocr_detection" in maps:
        arguments["words"] = list(example.get("words", ()))
        features = np.asarray(example.get(labels.WORDS_KEY, labels.no_words()))
        arguments["word_features"] = features[: len(arguments["words"])]
    _check_texts(arguments)
    return arguments


def _shrink(photo: np.ndarray, side: int) -> np.ndarray:
    height, width = photo.shape[:2]
    scale = side / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(photo).resize(shape, Image.Resampling.LANCZOS))


def _jpeg(photo: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "jpeg", quality=QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def _readable_by_all(encoded: bytes) -> bool:
    """Whether it decodes to RGB of 8 bits without ado; its EXIF orientation stays with it."""
    if encoded.startswith(b"\x89PNG") and encoded[24] > 8:  # Pillow takes the high bytes of 16 bits, TFDS the low ones
        return False
    with Image.open(io.BytesIO(encoded)) as header:
        return header.format in KEPT and header.mode in ("RGB", "L") and not header.has_transparency_data


def _check_texts(arguments: dict[str, Any]) -> None:
    """JSON can hold halves of characters, which no file of UTF-8 can."""
    texts = [*arguments["captions"], *(arguments.get(key, "") for key in TEXTS), *arguments.get("words", ())]
    for question in arguments["questions"]:
        about = (str(question.get(key, "")) for key in ("question_type", "answer_type", "question_id"))
        texts += [question["question"], *about, *question["answers"]]
    try:
        "".join([arguments["id"], *texts]).encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"example {arguments['id']!a}: a text of it is no Unicode ({error}).", "not Unicode") from None
