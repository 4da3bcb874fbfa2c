import re
import subprocess
import sys

import numpy as np
import pytest

from prismer_jax import pp
from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp import text
from prismer_jax.testing import ROOT

NAN = float("nan")


class Words:
    """A tokenizer of white-space words, whose ids can be read: the first word seen is 4, and so on."""

    bos, pad, eos, unk = 0, 1, 2, 3

    def __init__(self):
        self.ids: dict[str, int] = {}

    def encode(self, text):
        return [self.ids.setdefault(word, len(self.ids) + 4) for word in text.split()]

    encode_after = encode

    def decode(self, ids):
        names = {i: word for word, i in self.ids.items()}
        return " ".join(names[int(i)] for i in ids if int(i) > 3)


def run(spec, example, seed=0):
    words = Words()
    out = pp.build(spec, tokenizer=words)({"id": "x", **example}, np.random.default_rng(seed))
    return out, words


def test_plain_style_keeps_case_and_punctuation():
    style = text.style_of("plain")
    assert style.caption("  A red\n box,  left of  TOM. ") == "A red box, left of TOM."
    assert style.question(" what  is it ") == "what is it?"
    assert style.question("Describe it.") == "Describe it."


def test_training_caption_scores_the_caption_and_the_end_but_not_the_prefix():
    out, words = run("caption(prefix='A picture of')|tokenize(9)", {"captions": ["a dog"]})
    assert out["text"].dtype == np.int32
    assert out["mask_loss"].dtype == np.float32
    assert out["text"].tolist() == [0, 4, 5, 6, *words.encode("a dog"), 2, 1, 1]
    assert out["mask_loss"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert out["mask_ar"].tolist() == [1] * 9


def test_training_question_is_contiguous_and_scores_the_answer_by_its_weight():
    out, words = run(
        "question|tokenize(9)",
        {"question": "what is it", "answers": ["blue box"], "answer_weights": [1.0], "weight": 0.2},
    )
    assert out["text"].tolist() == [0, *words.encode("what is it?"), *words.encode("blue box"), 2, 1, 1]
    np.testing.assert_allclose(out["mask_loss"], [0, 0, 0, 0, 0.2, 0.2, 0.2, 0, 0])


def test_prompts_are_padded_left_unless_asked_and_score_nothing():
    out, _ = run("caption_prompt('A picture of')|tokenize(6)", {"captions": ["unused"]})
    assert out["text"].tolist() == [1, 1, 0, 4, 5, 6]
    assert not out["mask_loss"].any()
    out, _ = run("question_prompt|tokenize(6, pad='right')", {"question": "who is it"})
    assert out["text"].tolist() == [0, 4, 5, 6, 1, 1]
    out, _ = run("caption_prompt|tokenize(3)", {})
    assert out["text"].tolist() == [1, 1, 0]


def test_too_long_texts_lose_caption_ends_and_question_ends_never_answers_or_the_end():
    out, words = run("caption(prefix='p')|tokenize(5)", {"captions": ["a b c d e"]})
    assert words.decode(out["text"]) == "p a b"
    assert out["text"][-1] == words.eos
    assert out["_cut"] == 1
    out, words = run("question|tokenize(5)", {"question": "a b c d e f", "answers": ["yes"]})
    assert words.decode(out["text"]) == "a b yes"
    assert out["text"][-1] == words.eos
    assert out["_cut"] == 1
    out, _ = run("caption(prefix='p')|tokenize(5)", {"captions": ["a b"]})
    assert out["_cut"] == 0
    with pytest.raises(BadSample, match=r"answer of 3 tokens .* tokenize"):
        run("question|tokenize(5)", {"question": "a", "answers": ["x y z"]})
    with pytest.raises(BadSample, match="prefix"):
        run("caption(prefix='p q r')|tokenize(5)", {"captions": ["x"]})


def test_captions_are_drawn_by_the_rng_and_all_of_them():
    captions = ["one", "two", "three"]
    drawn = [run("caption", {"captions": captions}, seed)[0]["target"] for seed in range(30)]
    assert set(drawn) == set(captions)
    assert drawn == [run("caption", {"captions": captions}, seed)[0]["target"] for seed in range(30)]


def test_answers_are_drawn_by_frequency_or_by_weight_or_by_majority():
    answers = ["red"] * 7 + ["blue"] * 3
    drawn = [run("question", {"question": "q", "answers": answers}, seed)[0]["target"] for seed in range(300)]
    assert 0.6 < drawn.count("red") / 300 < 0.8
    weighted = {"question": "q", "answers": ["a", "b"], "answer_weights": [0.0, 2.0]}
    assert {run("question", weighted, seed)[0]["target"] for seed in range(20)} == {"b"}
    assert run("question(answer='majority')", {"question": "q", "answers": ["x", "y", "y"]})[0]["target"] == "y"


@pytest.mark.parametrize(
    ("prefix", "caption", "target"),
    [
        ("A picture of", "A Man riding.", "a man riding"),
        ("", "A Man riding.", "a man riding"),  # the leading space of an empty prefix prevents the capital
        (None, "A Man riding.", "A man riding"),
    ],
)
def test_reference_captions_are_cleaned_together_with_their_prefix(prefix, caption, target):
    out, _ = run(f"caption(prefix={prefix!r}, style='reference')", {"captions": [caption]})
    assert (out["prompt"], out["target"]) == (prefix or "", target)


def test_reference_questions_and_answers_are_capitalised():
    out, _ = run("question(style='reference')", {"question": "WHO is it", "answers": ["new York"]})
    assert (out["prompt"], out["target"]) == ("Who is it?", "New york")


@pytest.mark.parametrize(
    ("spec", "example"),
    [
        ("caption", {"captions": []}),
        ("caption", {"captions": ["  \n"]}),
        ("caption(style='reference')", {"captions": ["..."]}),
        ("question", {"question": "", "answers": ["a"]}),
        ("question", {"question": "q", "answers": []}),
        ("question", {"question": "q", "answers": [" "]}),
        ("question", {"question": "q", "answers": ["a"], "answer_weights": [0.0]}),
        ("question", {"question": "q", "answers": ["a", "b"], "answer_weights": [float("nan"), 1.0]}),
        ("question", {"question": "q", "answers": ["a", "b"], "answer_weights": [float("inf"), 1.0]}),
        ("question_prompt", {"question": None}),
        ("caption", {"captions": [NAN]}),  # an empty cell, as pandas reads it
        ("caption", {"captions": ["half of \ud83d"]}),
        ("question", {"question": NAN, "answers": ["a"]}),
        ("question", {"question": "q", "answers": [NAN]}),
        ("question(answer='majority')", {"question": "q", "answers": ["\udc80"]}),
        ("pack(9, of='captions')", {"captions": [NAN]}),
        ("turns", {"captions": [NAN]}),
        ("turns", {"question": "\ud800", "answers": ["a"]}),
        ("ask", {"question": NAN}),
        ("affix('a {question}')", {"question": "q", "answers": [NAN]}),
    ],
)
def test_examples_without_usable_text_are_bad_samples_with_their_id(spec, example):
    with pytest.raises(BadSample, match="example x"):
        run(spec, example)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("captoin", "'caption'"),
        ("caption(style='old')", "plain, reference"),
        ("caption(prefx='a')", r"caption\(prefix"),
        ("caption(prefix='a picture: of', style='reference')", "A picture of"),
        ("question(answer='all')", "majority"),
        ("tokenize(2)", "at least 3"),
        ("tokenize", "length"),
        ("tokenize(9, pad='middle')", "left"),
        ("tokenize('9')", r"The op tokenize does not take these arguments .*Write tokenize\(length"),
    ],
)
def test_wrong_settings_are_explained_when_the_chain_is_built(spec, message):
    with pytest.raises(UserError, match=message):
        pp.build(spec, tokenizer=Words())


def test_a_mistake_inside_an_op_is_no_wrong_setting(monkeypatch):
    def broken(size: int = 1):
        return size + "a"

    monkeypatch.setitem(pp.OPS, "broken", broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        pp.build("broken(2)")
    with pytest.raises(UserError, match="The op broken does not take these arguments"):
        pp.build("broken('x')")


def test_every_op_is_found_by_a_chain_whichever_module_has_it():
    files = [file for file in (ROOT / "prismer_jax/pp").glob("*.py") if not file.name.endswith("_test.py")]
    written = {name for file in files for name in re.findall(r"^@register\ndef (\w+)", file.read_text(), re.M)}
    code = "from prismer_jax.pp import ops; import prismer_jax.pp; print(*ops.OPS, *ops.FURTHER)"
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert written == set(known.stdout.split())


def test_tokenize_says_what_it_lacks():
    with pytest.raises(UserError, match="tokenizer"):
        pp.build("tokenize(8)")
    with pytest.raises(UserError, match="caption_prompt"):
        run("tokenize(8)", {})
