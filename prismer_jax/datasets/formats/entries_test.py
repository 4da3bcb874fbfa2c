"""What entries of lists say, read without photos."""

import pytest

from prismer_jax.datasets import formats


def read(*entries) -> tuple[list[formats.Row], dict[str, int]]:
    """Returns the rows of a list, and how many entries were left out for which reason."""
    left_out = formats.LeftOut()
    rows = list(formats.rows("list.json", left_out=left_out, content=list(entries)))
    return rows, left_out.entries.counts


@pytest.mark.parametrize(
    ("entry", "image"),
    [
        ({"filepath": "one", "filename": "1.jpg"}, "one/1.jpg"),
        ({"path": "one/", "file_name": "1.jpg"}, "one/1.jpg"),
        ({"file_path": "v1.0", "image_name": "sub/1.jpg"}, "v1.0/sub/1.jpg"),
        ({"filepath": "one/1.jpg", "filename": "1.jpg"}, "one/1.jpg"),
        ({"filepath": "one", "filename": "one/1.jpg"}, "one/1.jpg"),
        ({"filepath": "one", "filename": "/two/1.jpg"}, "/two/1.jpg"),
        ({"filepath": "raw/7.png", "filename": "1.jpg"}, "1.jpg"),
        ({"path": "https://x.org/1.jpg", "file_name": "1.jpg"}, "1.jpg"),
        ({"filepath": None, "filename": "1.jpg"}, "1.jpg"),
        ({"filepath": "one", "image": "1.jpg"}, "1.jpg"),
    ],
)
def test_a_name_beside_its_folder_is_one_path(entry, image):
    ((row,), _) = read({**entry, "caption": "x"})
    assert (row.image, row.captions) == (image, ["x"])


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("vqa", "vqa"), (2014, "2014"), (2014.0, "2014"), (float("nan"), None), (None, None), (" ", None)],
)
def test_a_data_set_may_be_a_number(dataset, name):
    ((row,), _) = read({"image": "a.jpg", "caption": "x", "dataset": dataset})
    assert row.dataset == name


@pytest.mark.parametrize("dataset", [["coco"], {"name": "coco"}, True])
def test_a_data_set_that_is_no_text_is_left_out(dataset):
    entry = {"image": "a.jpg", "dataset": dataset}
    asked = {"question": "q?", "answer": "x"}
    entries = [{**entry, "caption": "x"}, {**entry, **asked}, {"image": "a.jpg", "questions": [{**entry, **asked}]}]
    assert read(*entries) == ([], {"dataset that is not a text": 3})


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"answer": 2.0}, "2"),  # of an integer column with a gap
        ({"answers": [2.0, None]}, "2"),
        ({"answer": 2.5}, "2.5"),
        ({"answer": "2.0"}, "2.0"),
        ({"answer": 1.0, "choices": ["a", "b"]}, "b"),
        ({"correct_choice_idx": 1.0, "choices": ["a", "b"]}, "b"),
        ({"answer": 1, "choices": ["1", "2"]}, "2"),  # as in ScienceQA
        ({"answer": 1, "choices": [10, 20]}, "20"),
        ({"answer": 20, "choices": [10, 20]}, "20"),
        ({"answer": 1, "choices": [0, 1.0]}, "1"),
        ({"answer": "2", "choices": [1, 2, 3]}, "2"),
        ({"correct_choice_idx": 2, "choices": [1, 2, 3]}, "3"),
    ],
)
def test_numbers_as_answers_and_of_choices(said, answer):
    ((row,), _) = read({"image": "a.jpg", "question": "q?", **said})
    assert row.question["answers"] == [answer] * 10


def test_a_number_that_may_be_an_answer_or_that_of_a_choice_is_left_out():
    entry = {"image": "a.jpg", "question": "q?", "choices": [1, 2, 3]}
    assert read({**entry, "answer": 2}, {**entry, "answer": 1.0}) == ([], {"answer of two meanings": 2})


TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "red"}]
DESCRIBED = [{"role": "user", "content": "Describe it."}, {"role": "assistant", "content": "a dog"}]
ASKED = [("What is it?", ["red"] * 10)]


@pytest.mark.parametrize("empty", [None, [], {}, "", float("nan")])
@pytest.mark.parametrize("key", ["conversations", "messages", "conversation", "questions", "qas", "qa_pairs"])
def test_empty_questions_and_conversations_are_none(key, empty):
    asked = {"question": "q?", "answer": "x", key: empty}
    rows, counts = read({"image": "a.jpg", "text": "x", key: empty}, {"image": "a.jpg", **asked})
    assert (rows[0].captions, rows[0].question, counts) == (["x"], None, {})
    assert rows[1].question["answers"] == ["x"] * 10


@pytest.mark.parametrize(
    ("entry", "captions", "questions"),
    [
        ({"caption": "x", "conversations": TALK}, ["x"], ASKED),
        ({"caption": "x", "messages": DESCRIBED}, ["x", "a dog"], []),
        ({"caption": "a dog", "messages": DESCRIBED}, ["a dog"], []),
        ({"caption": None, "conversations": TALK}, [], ASKED),
        ({"question": "q?", "answer": "x", "messages": DESCRIBED}, ["a dog"], [("q?", ["x"] * 10)]),
        ({"question": "q?", "answer": "x", "conversations": TALK}, [], [("q?", ["x"] * 10), *ASKED]),
        ({"question": "What is it?", "answer": "red", "conversations": TALK}, [], ASKED),
        ({"question": "<image>\nWhat is it?", "conversations": TALK}, [], ASKED),
        ({"question": None, "answer": None, "conversations": TALK}, [], ASKED),
        ({"questions": [{"question": "q?", "answer": "x"}], "messages": DESCRIBED}, ["a dog"], [("q?", ["x"] * 10)]),
        ({"conversations": TALK, "messages": DESCRIBED}, ["a dog"], ASKED),
        ({"conversations": TALK, "messages": TALK}, [], ASKED),
        (
            {"caption": "x", "question": "q?", "answer": "x", "questions": [{"question": "r?"}]},
            ["x"],
            [("r?", []), ("q?", ["x"] * 10)],
        ),
    ],
)
def test_what_stands_beside_questions_and_conversations_is_read(entry, captions, questions):
    rows, counts = read({"image": "a.jpg", **entry})
    assert counts == {}
    assert [text for row in rows for text in row.captions] == captions
    asked = [row.question for row in rows if row.question]
    assert [(one["question"], one["answers"]) for one in asked] == questions


def test_an_entry_alone_in_its_file_may_have_questions():
    content = {"image": "a.jpg", "caption": "x", "questions": [{"question": "q?", "answer": "x"}]}
    (row,) = formats.rows("list.json", content=content)
    assert (row.captions, row.question["answers"]) == (["x"], ["x"] * 10)
    assert [row.captions for row in formats.rows("list.json", content={**content, "questions": None})] == [["x"]]
