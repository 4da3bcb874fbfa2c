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
