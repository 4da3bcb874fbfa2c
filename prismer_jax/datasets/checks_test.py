"""What is read of a data set is there and of its type, or one line says what is not."""

import numpy as np
import pytest

from prismer_jax import datasets
from prismer_jax.datasets import altered, checks
from prismer_jax.errors import BadSample, UserError


class Source:
    """Photos of which the last alone has edges; one is damaged, and one has a record's zero bytes."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index == 0:
            raise BadSample("damaged")
        example = {"labels/depth": b"png", "labels/normal": b"", "labels/seg_coco": np.zeros((2, 2, 1), np.uint8)}
        return example | ({"labels/edge": "edge.png"} if index == 999 else {})


def test_one_example_with_a_label_is_enough():
    checks.check_taught([{"source": Source()}], ("depth", "edge", "seg_coco"))


def test_kinds_may_be_spread_over_data_sets():
    other = [{"image": b"", "labels/normal": b"png"}]
    checks.check_taught([{"source": Source()}, {"source": other}], ("depth", "normal"))


def test_a_kind_that_no_example_has_is_named():
    with pytest.raises(UserError, match=r"^config\.data: no example has labels of normal, ocr_detection\. Make them"):
        checks.check_taught([{"source": Source()}], ("depth", "normal", "ocr_detection"))


PP = "labels_for('depth+edge')|decode"


def test_labels_that_a_model_reads_and_nobody_has_are_said(caplog):
    experts = ("depth", "normal", "edge")
    checks.check(Source(), "config.data.web", PP, experts)
    assert caplog.text == ""  # normals are left out on purpose
    checks.check(Source(), "config.data.web", "decode", experts)
    assert "config.data.web: no labels of normal; the model sees empty maps. Make them" in caplog.text
    caplog.clear()
    blank = altered.Altered([{"image": b"", "labels/depth": b"png"}] * 2, ["labels/depth"], "blank", 0, ("depth",))
    checks.check(blank, "config.evals.vqa", PP, ("depth",))
    assert caplog.text == ""
    checks.check([{"image": b""}], "config.evals.vqa", PP, ("depth",))
    assert "config.evals.vqa: no labels of depth" in caplog.text
    checks.check([], "config.evals.vqa", PP, ("depth",))
    for every in ("labels_for()", "labels_for(experts='all')"):
        caplog.clear()
        checks.check([{"image": b""}], "config.evals.vqa", every, ("depth",))
        assert "no labels of depth" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("captions", "a red bird"),
        ("captions", [1, 2]),
        ("answers", "red"),
        ("answers", {"red": 1.0}),
        ("answers", np.array(["red"])),
        ("question", ["What?"]),
        ("class_name", 3),
    ],
)
def test_texts_of_another_type_are_refused_and_not_read_letter_by_letter(key, value):
    class Damaged(list):
        def __getitem__(self, index):
            if index == 0:
                raise BadSample("damaged")
            return super().__getitem__(index)

    source = Damaged([{}, {"id": "1", "image": b"", "question": "What?", "answers": ["red"], key: value}])
    with pytest.raises(UserError, match=rf"^config\.data\.birds: an example has {key}: .*are lists of texts"):
        checks.check(source, "config.data.birds")


def test_texts_as_data_sets_give_them_are_taken():
    examples = [{"captions": ["a dog"], "question": None}, {"captions": ()}, {"answers": ["red"], "question": "What?"}]
    for example in examples:
        checks.check([example], "config.data.birds")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lists", dict(path="x.json", task="quest"), r"lists\.task is 'quest'; it must be 'caption' or 'question' or"),
        ("lists", dict(path="x.json", limit=-1), r"lists\.limit is -1; it must be 1 at least"),
        ("lists", dict(path="x.json", limit="x"), r"lists\.limit is 'x'; it must be a whole number or None"),
        ("lists", dict(path="x.json", limti=1), r"lists: unknown key 'limti'. Did you mean 'limit'"),
        ("altered", dict(of={"images": "x"}, experts="depth", how="blank"), r"altered\.of: key 'name' is missing"),
        ("altered", dict(of={"name": "photos"}, experts="depth", how="blank"), r"altered\.of: key 'images' is missing"),
        ("altered", dict(of="x", experts="depth", how="blank"), r"altered\.of is 'x'; it must be a section"),
    ],
)
def test_arguments_that_a_data_set_does_not_take_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        datasets.load(name, **options)
