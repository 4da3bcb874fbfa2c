"""Visual Genome's own files: regions, [{"id", "regions": [{"phrase"}]}], and questions, [{"id", "qas": [{"qa_id"}]}].

Neither names a photo: it is called by its number, in one of two folders (datasets/photo_paths.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prismer_jax.datasets.formats import row
from prismer_jax.datasets.formats.row import Entry, LeftOut, Row

WEIGHTS = {"vg": 0.2}  # of a `dataset` whose questions have no weight: Visual Genome's, as in the reference


def regions(content: Iterable[Entry], left_out: LeftOut) -> Iterator[Row]:
    """Yields a row a photo, whose captions are the phrases of its regions."""
    yield from row.each(content, _regions, left_out.entries, "image")


def questions(content: Iterable[Entry], left_out: LeftOut) -> Iterator[Row]:
    """Yields a row a question."""
    asked = ((image, qa) for image in content for qa in image["qas"])
    yield from row.each(asked, _question, left_out.entries, "question")


def _regions(image: Entry) -> Iterable[Row]:
    phrases = [region["phrase"] for region in image["regions"]]
    return (Row(f"VG_100K/{image['id']}.jpg", "vg", row.id_text(image["id"]), phrases),)


def _question(pair: tuple[Entry, Entry]) -> Iterable[Row]:
    image, asked = pair
    question = {
        "question": row.question(asked["question"]),
        "question_type": "",
        "question_id": row.number_or_text(asked["qa_id"]),
        "answers": row.repeated(row.answers(asked["answer"])),
        "weight": WEIGHTS["vg"],
    }
    return (Row(f"VG_100K/{image['id']}.jpg", "vg", row.id_text(image["id"]), question=question),)
