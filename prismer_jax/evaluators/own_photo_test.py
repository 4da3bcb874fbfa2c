"""Own photos beside others': who has which, and intervals that say what they should."""

import types

import numpy as np
import pytest

from prismer_jax import pp as ops
from prismer_jax.errors import UserError
from prismer_jax.evaluators.evaluators_test import VARIABLES, Damaged, asked, captioned, made, pp


def source(count, word=None):
    """Photos that differ from the one before, and the last from all."""
    values = [*(4 + number % 2 for number in range(count - 1)), 6]
    return [{**one, "value": v, "word": word or v} for one, v in zip(captioned(count), values, strict=True)]


def seen(example, rng):
    """A text that is the word of the photo, in a photo of its own."""
    arrays = pp(example, rng)
    arrays["text"] = np.array([1, 0, example["word"]], np.int32)
    return arrays


@pytest.mark.parametrize("batch_size", [4, 10, 16])
def test_texts_of_photos_are_likelier_with_them(batch_size):
    evaluator = made("own_photo", source(9), pp=seen, batch_size=batch_size)
    values = dict(evaluator.run(VARIABLES))
    assert set(evaluator.score_names) == {name for name in values if not name.endswith("_blank")}
    assert values["wins"] == 100
    assert values["loss"] < values["loss_other"]
    assert values["gain"] == pytest.approx(values["loss_other"] - values["loss"], rel=1e-5)
    assert 0 < values["gain_low"] <= values["gain"] <= values["gain_high"]
    assert len(evaluator.records) == 9
    assert evaluator.records[0]["scores"]["gain"] > 0


@pytest.mark.parametrize("words", [1, 3])
def test_a_gain_is_in_nats_a_token(words):
    """The model gives the word of a photo a logit of 9, all others 0."""

    def said(example, rng):
        arrays = seen(example, rng)
        arrays["text"] = np.array([1, 0, *[example["word"]] * words], np.int32)
        arrays["mask_loss"] = np.array([0, 0, *[1] * words], np.float32)
        return arrays

    values = dict(made("own_photo", source(9), pp=said).run(VARIABLES))
    assert values["gain"] == pytest.approx(9, rel=1e-4)
    assert values["loss"] == pytest.approx(np.log(1 + 9 * np.exp(-9)), rel=1e-2)


def test_texts_that_say_nothing_of_photos_gain_nothing():
    values = dict(made("own_photo", source(9, word=7), pp=seen, batch_size=3).run(VARIABLES))
    assert values["gain"] == pytest.approx(0, abs=1e-6)
    assert values["wins"] == 0


def test_both_losses_weigh_a_text_by_its_tokens():
    """Two of nine texts have five tokens and are of the photo before; the others have one, which is of no photo."""

    def said(example, rng):
        arrays, long = seen(example, rng), example["id"] in ("4", "6")
        arrays["text"] = np.array([1, 0, *[4 if long else 7] * 5], np.int32)
        arrays["mask_loss"] = np.array([0, 0, 1, *[float(long)] * 4], np.float32)
        return arrays

    values = dict(made("own_photo", source(9), pp=said).run(VARIABLES))
    assert values["loss"] == pytest.approx(9, abs=1e-2)
    assert values["loss_other"] == pytest.approx(9 * 7 / 17, abs=1e-2)
    assert values["gain"] == pytest.approx(-9 * 2 / 9, abs=1e-2)  # the mean over texts


def test_a_single_row_in_the_last_batch_gets_another_photo():
    evaluator = made("own_photo", source(5), pp=seen, batch_size=4)
    dict(evaluator.run(VARIABLES))
    assert all(record["scores"]["gain"] > 0 for record in evaluator.records)


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]]])
def test_the_other_photo_is_the_same_however_processes_share_the_rows(rows):
    """Here a text is the word of the photo before it, so that it is likeliest with that one alone."""
    photos = [{**one, "value": i, "word": (i - 1) % 9} for i, one in enumerate(captioned(9))]

    def measured(rows):
        evaluator = made("own_photo", photos, pp=seen)
        evaluator._rows = rows  # of each batch of four, those of one process
        batches = evaluator._load([0, 1, 2])
        return [dict(zip(rows, evaluator.measure(VARIABLES, batch), strict=True)) for batch in batches]

    for own in rows:
        for number, records in enumerate(measured(own)):
            real = [record for row, record in records.items() if 4 * number + row < 9]
            assert all(record["loss_other"] < 0.1 < record["loss"] for record in real)


@pytest.mark.parametrize("key", ["photo", "image"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_other_photo_of_a_question_is_not_its_own(batch_size, key):
    """Photos have four questions each in a row, by the name of their photo or by its path."""
    questions = [{**one, "id": f"{i}", key: f"{i // 4}.jpg", "value": 4 + i // 4} for i, one in enumerate(asked(12))]
    for one in questions:
        one.update(word=one["value"])
    evaluator = made("own_photo", Damaged(questions, {4}), pp=seen, batch_size=batch_size)
    assert dict(evaluator.run(VARIABLES))["wins"] == 100
    assert len(evaluator.records) == 11


def test_questions_of_one_photo_are_drawn_together():
    def width(photos):
        rows = [{**one, "photo": f"{i // photos}", "value": 4 + i // photos % 2} for i, one in enumerate(captioned(24))]
        for i, one in enumerate(rows):
            one.update(word=one["value"] if i // 6 % 2 else 7)
        values = dict(made("own_photo", rows, pp=seen).run(VARIABLES))
        return values["gain_high"] - values["gain_low"]

    assert width(6) > 1.5 * width(1) > 0


def test_the_other_photo_has_the_tiles_that_a_text_has_tokens_for():
    sides = [(20, 60), (60, 60), (20, 60), (60, 20)]  # 1 x 2, 2 x 2, 1 x 2 and 2 x 1 tiles
    source = [{"id": f"{i}", "image": np.full((*side, 3), i, np.uint8)} for i, side in enumerate(sides)]
    evaluator = made("own_photo", source, pp=ops.build("decode|tiles(32, 64)"))
    (batch,) = evaluator._load([0])
    assert batch["other"]["image"][:, 0, 0, 0, 0].tolist() == [3, 0, 1, 2]  # the model reads no tokens of images
    evaluator.model = types.SimpleNamespace(image_token=1)
    (batch,) = evaluator._load([0])
    assert batch["other"]["image"][[0, 2], 0, 0, 0, 0].tolist() == [2, 0]
    assert batch["_mask"].tolist() == [True, False, True, False]
    assert "no other photo is of the tiles [(2, 1)]" in batch["meta"][3]["error"]


def test_one_photo_is_refused():
    with pytest.raises(UserError, match="another photo takes two examples"):
        made("own_photo", captioned(1), pp=seen).check_source()
    same = [{**one, "photo": "1.jpg"} for one in source(4)]
    with pytest.raises(UserError, match="own_photo: no good example shows another photo than example 0"):
        dict(made("own_photo", same, pp=seen).run(VARIABLES))
