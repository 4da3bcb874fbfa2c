"""Own photos beside others': who has which, and intervals that say what they should."""

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.evaluators import own_photo
from prismer_jax.evaluators.evaluators_test import VARIABLES, captioned, made, pp


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


def test_a_single_row_in_the_last_batch_gets_another_photo():
    evaluator = made("own_photo", source(5), pp=seen, batch_size=4)
    dict(evaluator.run(VARIABLES))
    assert all(record["scores"]["gain"] > 0 for record in evaluator.records)


def test_one_photo_is_refused():
    with pytest.raises(UserError, match="another photo takes two examples"):
        made("own_photo", captioned(1), pp=seen).check_source("config.evals.own")
    with pytest.raises(UserError, match="another photo takes two examples"):
        made("own_photo", captioned(4), pp=seen, batch_size=1).check_source()


def test_the_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    low, high = own_photo.interval(values)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.02)
