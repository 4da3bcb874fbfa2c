"""Questions in files of the benchmarks that do not name their photos: VQAv2 (OK-VQA is the same) and GQA.

- VQAv2's: {"data_subtype", "questions": [{"question_id", "image_id", "question"}]}, and the answers in a second file,
  {"annotations": [{"question_id", "image_id", "answers": [{"answer"}]}]}. `images`, as in COCO's, may name photos. In
  one file the answers are in the questions, or in `annotations` beside them, where COCO's captions may be, too.
- GQA's: {question id: {"imageId", "question", "answer", "types"}}; the photo is <imageId>.jpg
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prismer_jax.datasets.formats import coco, entries, row
from prismer_jax.datasets.formats.row import Entry, LeftOut, Row
from prismer_jax.errors import BadSample

# The official files of the test-dev split name photos of the test set by another name than these have.
PARTS = {"test-dev2015": "test2015"}
_OFFICIAL = {"image_id", "question_id", "question"}
_ANSWERS = frozenset((*row.ANSWER_KEYS, "correct_choice_idx"))


def has_answers(content: Entry) -> bool:
    """Returns whether a file of questions has answers in it: in the questions, or in `annotations` of its own."""
    return any(map(_is_answered, _list(content, "questions"))) or any(map(_is_answer, _list(content, "annotations")))


def questions(content: Entry, annotations: Any, left_out: LeftOut) -> Iterator[Row]:
    """Yields a row a question, with its own answers or those that annotations have, and before a row a captioned photo.

    Where there are annotations of answers, a question that has none and that they do not answer is left out.

    Args:
      content: the file of the questions.
      annotations: the file of their answers; None where there is no second file.
      left_out: counts what is no row.

    Raises:
      ValueError: nothing says which photos the questions are of, or the annotations answer none of them.
    """
    images, part = content.get("images") or (), content.get("data_subtype")
    names = coco.names(images)
    if not names and not part:
        raise ValueError("it neither names its images nor, by data_subtype, the part of COCO that they are of")
    inside = content.get("annotations") or ()
    captioned = {"images": images, "annotations": [entry for entry in inside if not _is_answer(entry)]}
    yield from (photo for photo in coco.captions(captioned, left_out) if photo.captions)
    if annotations is None and any(map(_is_answer, inside)):
        annotations = {"annotations": [entry for entry in inside if _is_answer(entry)]}
    by_question = None if annotations is None else _Annotations(annotations)
    matched = 0

    def read(asked: Entry) -> Iterable[Row]:
        nonlocal matched
        photo = row.id_text(asked["image_id"])
        if names:
            if photo not in names:
                raise BadSample(f"photo {asked['image_id']!r} is not among its images", "question of an unlisted photo")
            image = names[photo]
        else:  # the official files name no photos: COCO's names follow from its ids
            folder = PARTS.get(part, part)
            image = f"{folder}/COCO_{folder}_{int(photo):012d}.jpg"
        annotation = {} if by_question is None or _is_answered(asked) else by_question.of(asked)
        matched += 1
        if asked.keys() != _OFFICIAL or not isinstance(image, str):
            own = {key: value for key, value in asked.items() if key not in _ANSWERS or not annotation}
            return entries.rows_of({**annotation, **own, "image": image, "question": asked["question"]})
        question = {
            "question": row.question(asked["question"]),
            "question_type": str(annotation.get("question_type", "")),
            "answer_type": str(annotation.get("answer_type", "")),
            "question_id": row.number_or_text(asked["question_id"]),
            "answers": row.repeated(entries.answers_of(annotation)),
        }
        return (Row(image, None, photo, question=question),)

    yield from row.each(content["questions"], read, left_out.entries, "question")
    if by_question is not None and not matched and content["questions"]:
        first = content["questions"][0]
        parts = f" (these are of {part}, the annotations of {by_question.part})" if part and by_question.part else ""
        raise ValueError(
            f"the annotations answer none of its questions, the first is {first.get('question_id')!r}: are they of "
            f"another split?{parts}"
        )


def gqa(content: Entry, left_out: LeftOut) -> Iterator[Row]:
    """Yields a row a question of GQA."""
    yield from row.each(content.items(), _gqa_question, left_out.entries, "question")


def _gqa_question(item: tuple[str, Entry]) -> Iterable[Row]:
    id, asked = item
    question = {
        "question": row.question(asked["question"]),
        "question_type": str((asked.get("types") or {}).get("structural") or ""),
        "question_id": id,
        "answers": row.repeated(row.answers(asked.get("answer"))),
        "weight": 1.0,
    }
    photo = row.id_text(asked["imageId"])
    return (Row(f"{photo}.jpg", None, photo, question=question),)


class _Annotations:
    """VQAv2's file of answers, by question and, where it says them, by photo: question ids may restart in each."""

    def __init__(self, content: Any) -> None:
        """Raises a ValueError where the file has no annotations, or two different ones of a question."""
        entries = content.get("annotations") if isinstance(content, Mapping) else content
        entries = [entry for entry in entries or () if isinstance(entry, Mapping) and "question_id" in entry]
        if not entries:
            raise ValueError("the file of its annotations has none")
        self.part = content.get("data_subtype") if isinstance(content, Mapping) else None
        self._by_photo = all("image_id" in entry for entry in entries)
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            if self._entries.setdefault(self._key(entry), entry) != entry:
                raise ValueError(
                    f"two annotations with different answers have the question id {entry['question_id']!r}: give "
                    "merged files one by one, each with its annotations"
                )

    def of(self, asked: Entry) -> Entry:
        """Returns the annotation of a question.

        Raises:
          BadSample: there is none.
        """
        annotation = self._entries.get(self._key(asked))
        if annotation is None:
            raise BadSample(f"{asked['question_id']!r} is not among the annotations", "question without annotation")
        return annotation

    def _key(self, entry: Entry) -> str:
        id = row.id_text(entry["question_id"])
        return f"{row.id_text(entry['image_id'])} {id}" if self._by_photo else id


def _list(content: Entry, key: str) -> list[Any]:
    return value if isinstance(value := content.get(key), list) else []


def _is_answered(asked: Any) -> bool:
    """Returns whether a question has answers of its own."""
    if not isinstance(asked, Mapping) or _ANSWERS.isdisjoint(asked):
        return False
    return any(not row.is_nothing(asked.get(key)) for key in _ANSWERS)


def _is_answer(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and "question_id" in annotation and "caption" not in annotation
