"""BLIP's texts agree with every recorded case; its RandAugment keeps labels on what they label."""

import json

import cv2
import numpy as np
import pytest

from prismer_jax import input, pp
from prismer_jax.batch import inputs
from prismer_jax.errors import UserError
from prismer_jax.pp import blip, randaugment
from prismer_jax.pp.text import style_of
from prismer_jax.scores import vqa

STYLE = style_of("blip")


@pytest.fixture(scope="module")
def cases(shared):
    path = shared / "golden/blip2_text_cases.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return json.loads(path.read_text())


def run(spec, example, seed=0):
    return pp.build(spec)(example, np.random.default_rng(seed))


def test_captions_and_questions_are_cleaned_as_recorded(cases):
    for name, clean in (("blip_caption", STYLE.caption), ("blip_question", STYLE.question)):
        assert len(cases[name]) > 10
        for case in cases[name]:
            assert clean(case["in"], case["max_words"]) == case["out"], case
    for case in cases["blip_caption_prompt_a_photo_of"]:
        if case["out"].strip() != "a photo of":  # an empty caption is a bad sample
            out = run("caption('a photo of', style='blip')", {"captions": [case["in"]]})
            assert f"{out['prompt']} {out['target']}" == case["out"]


def test_questions_are_asked_in_the_recorded_template(cases):
    out = run("question_prompt(style='blip')|prompt_template()", {"question": "What color is the cat?"})
    assert out["prompt"] == cases["prompts"]["vqa_example"]
    assert cases["prompts"]["vqa"] == blip.VQA_PROMPT
    with pytest.raises(UserError, match="where the question stands"):
        pp.build("prompt_template('Answer:')")


def test_a_template_without_a_prompt_to_put_into_it_says_so():
    with pytest.raises(UserError, match="prompt_template needs an op before it that makes a prompt: question_prompt"):
        run("prompt_template()|question_prompt()", {"question": "Which?"})


def test_what_is_said_loses_white_space_around_it(cases):
    class Said:
        def decode(self, text):
            return text

    for case in cases["opt_output_strip"]:
        assert STYLE.caption_said(Said(), [], case["in"]) == STYLE.answer_said(Said(), [], case["in"]) == case["out"]


def test_answers_are_normalised_as_in_the_evaluation(cases):
    for case in cases["vqa_eval_normalise"]:
        assert vqa.normalize(case["in"]) == case["out"], case


def test_moved_labels_stay_on_what_they_label():
    photo, mask = np.zeros((96, 96, 3), np.uint8), np.full((48, 48, 1), 255, np.uint8)
    photo[24:72, 24:72], mask[12:36, 12:36] = 255, 7
    for move in blip.GEOMETRY:
        for draw in (0.2, 0.8):
            out = blip.apply({"image": photo, "labels/seg_coco": mask}, move, 10, draw)
            assert not np.array_equal(out["image"], photo)
            seen = cv2.resize(out["image"][..., 0], (48, 48), interpolation=cv2.INTER_AREA) > 191  # grey comes in
            labelled = out["labels/seg_coco"][..., 0] == 7
            assert (seen & labelled).sum() / (seen | labelled).sum() > 0.93, move


def test_half_of_the_moves_are_made_and_the_same_ones_of_a_seed():
    photo = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    photos = [run("blip_randaugment(1, 9)", {"image": photo}, seed)["image"] for seed in range(200)]
    np.testing.assert_array_equal(photos[7], run("blip_randaugment(1, 9)", {"image": photo}, 7)["image"])
    changed = sum(not np.array_equal(one, photo) for one in photos)
    assert 60 < changed < 110  # of nine moves in ten, and white stretches black to white already
    with pytest.raises(UserError, match="0 to 10"):
        pp.build("blip_randaugment(2, 11)")


def test_the_references_autocontrast_makes_photos_without_black_white():
    photo = np.linspace(20, 220, 300).astype(np.uint8).reshape(10, 10, 3)
    assert (blip.apply({"image": photo}, "autocontrast", 5, 0.0)["image"] == 255).all()
    right = blip.apply({"image": photo}, "autocontrast", 5, 0.0, "pillow")["image"]
    np.testing.assert_array_equal(right, randaugment.apply({"image": photo}, "autocontrast", 5, 1)["image"])
    assert np.unique(right).size > 50


def test_rows_of_one_photo_have_one_number():
    """Whether they are captions or questions of it; the loss of stage 1 gets it with the batch."""
    rows = [{"id": "7"}, {"id": "q1", "photo": "7"}, {"id": "8"}]
    source = [row | {"text": np.zeros(3, np.int32)} for row in rows]
    batches = input.train_batches([dict(source=source, pp=pp.build("image_id()"))], batch_size=3, seed=0)
    found = inputs(next(batches))["image_id"]
    batches.close()
    assert (found.dtype, found.shape) == (np.int32, (3,))
    assert len(set(found.tolist())) == 2
