"""Questions in files of the benchmarks that do not name their photos: VQAv2 (OK-VQA is the same) and GQA.

- VQAv2's: {"data_subtype", "questions": [{"question_id", "image_id", "question"}]}, and the answers in a second file,
  {"annotations": [{"question_id", "image_id", "answers": [{"answer"}]}]}. `images`, as in COCO's, may name photos.
- GQA's: {question id: {"imageId", "question", "answer", "types"}}; the photo is <imageId>.jpg
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prismer_jax.datasets.formats import row
from prismer_jax.datasets.formats.row import Entry, LeftOut, Row
from prismer_jax.errors import BadSample

# The official files of the test-dev split name photos of the test set by another name than these have.
PARTS = {"test-dev2015": "test2015"}


def questions(content: Entry, annotations: Any, left_out: LeftOut) -> Iterator[Row]:
    """Yields a row a question, with the answers that the second file has; without that file, with none.

    Where there is a second file, a question that it does not answer is left out.

    Raises:
      ValueError: nothing says which photos the questions are of, or the second file answers none of them.
    """
    names = {row.id_text(image["id"]): image["file_name"] for image in content.get("images", ())}
    part = content.get("data_subtype")
    if not names and not part:
        raise ValueError("it neither names its images nor, by data_subtype, the part of COCO that they are of")
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
        annotation = {} if by_question is None else by_question.of(asked)
        matched += 1
        question = {
            "question": row.question(asked["question"]),
            "question_type": str(annotation.get("question_type", "")),
            "answer_type": str(annotation.get("answer_type", "")),
            "question_id": row.number_or_text(asked["question_id"]),
            "answers": row.repeated(_answers(annotation)),
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


def _answers(annotation: Entry) -> list[str]:
    key = next((key for key in ("answers", "answer", "multiple_choice_answer") if key in annotation), None)
    return [] if key is None else row.answers(annotation[key])
