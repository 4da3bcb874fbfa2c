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
