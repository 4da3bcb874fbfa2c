"""Questions that name their photos by ids, with their answers in the same file or in another."""

import json

import pytest

from prismer_jax.datasets import formats, lists
from prismer_jax.errors import UserError

IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
QUESTION = {"image_id": 1, "question_id": 3, "question": "What?"}
RED = [{"answer": "red"}]


def read(content, **options) -> tuple[list[formats.Row], dict[str, int]]:
    """Returns the rows of a list, and how many entries were left out for which reason."""
    left_out = formats.LeftOut()
    rows = list(formats.rows("list.json", left_out=left_out, content=content, **options))
    return rows, left_out.entries.counts


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"answers": ["red"]}, {}),
        ({"answer": "red"}, {}),
        ({"answers": RED}, {}),
        ({"choices": ["blue", "red"], "correct_choice_idx": 1}, {}),
        ({}, {"annotations": [{"question_id": 3, "answers": RED}]}),
        ({"answers": None}, {"annotations": [{"question_id": "3", "image_id": 1, "answers": RED}]}),
        ({"answer": "red"}, {"annotations": [{"question_id": 4, "answers": RED}]}),
    ],
)
def test_answers_in_the_file_of_the_questions(asked, more):
    content = {"images": IMAGES, "questions": [{**QUESTION, **asked}], **more}
    ((row,), counts) = read(content)
    assert (row.image, row.id, row.question["question_id"], counts) == ("a.jpg", "1", 3, {})
    assert row.question["answers"] == ["red"] * 10
    assert not formats.wants_annotations(content)
    with pytest.raises(UserError, match=r"list\.json: it has its answers inside; leave `annotations` out"):
        read(content, annotations="answers.json")


def test_answers_of_questions_without_ids_and_in_files_of_coco():
    asked = {"image_id": 42, "question": "What?", "answer": "red", "question_type": "what", "weight": 0.5}
    ((row,), _) = read({"data_subtype": "val2014", "questions": [asked]})
    assert (row.image, row.id) == ("val2014/COCO_val2014_000000000042.jpg", "42")
    assert row.question == {"question": "What?", "question_type": "what", "answers": ["red"] * 10, "weight": 0.5}


def test_captions_beside_questions_are_read():
    captions = [{"image_id": 2, "caption": "a dog"}, {"image_id": 9, "caption": "lost"}]
    images = [{**IMAGES[0], "captions": ["one", "two"]}, *IMAGES[1:], {"id": 3, "file_name": "c.jpg"}]
    answers = [{"question_id": 3, "question_type": "what is", "answers": RED}]
    content = {"images": images, "questions": [QUESTION], "annotations": [*captions, *answers]}
    rows, counts = read(content)
    assert [(row.image, row.captions) for row in rows] == [
        ("a.jpg", ["one", "two"]),
        ("b.jpg", ["a dog"]),
        ("a.jpg", []),
    ]
    assert rows[2].question["answers"] == ["red"] * 10
    assert counts == {"caption of an unlisted photo": 1}
    part = {"data_subtype": "val2014", "questions": [QUESTION], "annotations": captions}
    assert read(part)[1] == {"caption of an unlisted photo": 2}


def test_captions_beside_questions_whose_answers_are_in_another_file(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [{"question_id": 3, "answers": RED}]}))
    captions = [{"image_id": 2, "caption": "a dog"}]
    (tmp_path / "q.json").write_text(json.dumps({"images": IMAGES, "questions": [QUESTION], "annotations": captions}))
    source = lists.load(tmp_path / "q.json", annotations=tmp_path / "a.json", task="all")
    assert [(one["captions"], len(one["questions"])) for one in (source[0], source[1])] == [(["a dog"], 0), ([], 1)]
    assert source[1]["questions"][0]["answers"] == ["red"] * 10


def test_photos_of_one_id_are_refused_and_what_is_no_name_is_left_out():
    with pytest.raises(UserError, match=r"the photos a\.jpg and c\.jpg have one id, 1"):
        read({"images": [*IMAGES, {"id": 1, "file_name": "c.jpg"}], "questions": [QUESTION]})
    images = [{"id": 1, "file_name": ["a.jpg", "b.jpg"]}]
    assert read({"images": images, "questions": [QUESTION]})[1]["entry of several photos"] == 1
