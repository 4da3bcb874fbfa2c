"""Free prompts: a model that is asked in words says something about photos, or without any."""

import json

import numpy as np
import pytest
from PIL import Image

from prismer_jax import caption
from prismer_jax.decode import batch as decode_batch
from prismer_jax.errors import UserError
from prismer_jax.models.nanovlm.conversion_test import official
from prismer_jax.pp import buckets
from prismer_jax.pp.chat_test import letters
from tools import convert

DRAWN = dict(top_k=50, top_p=0.9, temperature=0.5, filtering="nanovlm")  # of the original's generate


def converted(folder, **changes):
    """A small nanoVLM with random weights, as tools.convert leaves it."""
    (folder / "words").mkdir(parents=True)
    letters(folder / "words", ())
    official(folder / "in", **changes)
    flags = ["--input", str(folder / "in"), "--tokenizer", str(folder / "words")]
    convert.main(["nanovlm", *flags, "--output", str(folder / "model")])
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("nanovlm"))


@pytest.fixture(scope="module")
def captioner(model):
    return caption.Captioner(model)


@pytest.fixture
def photos(tmp_path):
    for number, size in enumerate([(40, 30), (90, 40), (33, 33)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p{number}.png")
    return tmp_path


def test_a_prompt_takes_the_place_of_the_checkpoints_own(captioner, photos):
    default = captioner.caption(photos, max_new=5)
    assert captioner.caption(photos, prompt="What is this?", max_new=5) == [
        {"image": row["image"], "prompt": "What is this?", **{k: row[k] for k in ("captions", "scores")}}
        for row in default
    ]
    other = captioner.caption(photos, prompt="Who?", max_new=5)
    assert all(a["scores"] != b["scores"] for a, b in zip(other, default, strict=True))
    (alone,) = captioner.caption(photos / "p1.png", prompt="Who?", max_new=5)
    np.testing.assert_allclose(alone["scores"], other[1]["scores"], rtol=1e-4)


def test_beams_score_a_text_alike_in_every_batch(captioner, photos):
    """Whose prompts have as many columns as the largest photo needs; the checkpoint says that these do not count."""
    found = captioner.caption(photos, num_beams=2, max_new=3)
    (alone,) = captioner.caption(photos / "p0.png", num_beams=2, max_new=3)
    np.testing.assert_allclose(alone["scores"], found[0]["scores"], rtol=1e-4)


def test_a_question_is_asked_as_a_prompt_is(captioner, photos):
    answers = captioner.answer(photos, "Who?", max_new=5)
    prompted = captioner.caption(photos, prompt="Who?", max_new=5)
    assert [row["scores"] for row in answers] == [row["scores"] for row in prompted]


def test_an_answer_keeps_the_models_capitals(captioner, photos):
    drawn = dict(max_new=20, seed=3, temperature=2.0)
    (answer,) = captioner.answer(photos / "p0.png", "Who?", num_answers=8, **drawn)
    (caption,) = captioner.caption(photos / "p0.png", prompt="Who?", num_captions=8, **drawn)
    assert [text.split() for text in answer["answers"]] == [text.split() for text in caption["captions"]]
    assert any(text != text.lower() for text in answer["answers"])


def test_several_captions_are_drawn_as_the_original_draws_them(captioner, photos):
    drawn = captioner.caption(photos, prompt="Who?", num_captions=4, max_new=5)
    assert drawn == captioner.caption(photos, prompt="Who?", num_captions=4, max_new=5, **DRAWN)
    assert len(drawn[0]["captions"]) == 4
    assert drawn != captioner.caption(photos, prompt="Who?", num_captions=4, max_new=5, temperature=2.0)
    assert drawn != captioner.caption(photos, prompt="Who?", num_captions=4, max_new=5, seed=1)


def test_a_prompt_needs_no_photo(captioner, photos):
    (alone,) = captioner.caption(prompt="Who?", max_new=5)
    assert alone["image"] == ""
    assert alone["scores"] != captioner.caption(photos / "p0.png", prompt="Who?", max_new=5)[0]["scores"]
    assert alone["scores"] != captioner.caption(prompt="Why?", max_new=5)[0]["scores"]
    with pytest.raises(UserError, match="Give photos to caption, or a prompt"):
        captioner.caption()
    with pytest.raises(UserError, match="5 is no text: give prompts and questions as texts"):
        captioner.caption(prompt=5)


def test_the_command_takes_a_prompt(model, photos, capsys):
    output = photos / "out.json"
    flags = ["--checkpoint", str(model), "--prompt", "Who?", "--num-captions", "2", "--output", str(output)]
    caption.main([*flags, "--images", str(photos / "p0.png")])
    assert len(capsys.readouterr().out.splitlines()) >= 2
    (row,) = json.loads(output.read_text())
    assert (row["prompt"], len(row["captions"])) == ("Who?", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "x", "--question", "y", "--images", "z"], "leave --question and --choices out"),
        (["--prompt", "x", "--choices", "y", "z"], "leave --question and --choices out"),
        ([], "Give --images, photos or folders of them, or --prompt"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        caption.main(["--checkpoint", "none", *flags])


def test_captions_that_begin_with_a_prefix_take_no_prompt(captioner, photos, monkeypatch):
    tasks = {"caption": dict(pp="decode|resize(32)|caption_prompt('A')|tokenize(3)", decode=dict(max_new=3))}
    monkeypatch.setattr(captioner, "tasks", tasks)
    with pytest.raises(UserError, match="prompt='Who\\?': this checkpoint takes no text prompt for captions"):
        captioner.caption(photos, prompt="Who?")


def test_experts_want_photos(captioner, monkeypatch):
    monkeypatch.setattr(captioner, "model", captioner.model.clone(experts=("depth",)))
    with pytest.raises(UserError, match="give photos beside the prompt"):
        captioner.caption(prompt="Who?")


def test_photos_of_few_tiles_cost_few_and_few_programs_are_compiled(captioner, tmp_path, monkeypatch):
    for number, side in enumerate([1, 1, 2, 2, 3, 3, 1, 2]):
        pixels = np.random.default_rng(number).integers(0, 256, (32 * side, 32 * side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p{number}.png")
    options, programs = dict(batch_size=2, max_new=4), decode_batch._compiled
    before = programs._cache_size()
    small = captioner.caption(tmp_path, **options)
    assert programs._cache_size() - before == 3  # of 1, 5 and 10 tiles; four batches
    monkeypatch.setattr(buckets, "trimmed", lambda examples: examples)
    for one, other in zip(small, captioner.caption(tmp_path, **options), strict=True):
        assert one["captions"] == other["captions"]
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-4)


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_photo_and_not_on_its_place(captioner, photos):
    options = dict(num_captions=3, max_new=8, temperature=2.0, seed=5)
    together = captioner.caption(photos, batch_size=3, **options)
    for alone in (
        captioner.caption(photos, batch_size=1, **options),
        captioner.caption(photos, batch_size=2, **options),
    ):
        assert [row["captions"] for row in alone] == [row["captions"] for row in together]
    (photos / "p9.png").write_bytes((photos / "p0.png").read_bytes())
    same, *_, other = captioner.caption(photos, batch_size=2, **options)
    assert same["captions"] != other["captions"]  # two photos, though alike
