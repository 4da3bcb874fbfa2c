import numpy as np
import pytest

from prismer_jax import pp
from prismer_jax.errors import BadSample, UserError

TOKENIZER = pp.tokenizer.load("scenes")
QUESTIONS = [
    {"question": f"How many {thing} are there?", "answers": [str(n)] * 10}
    for n, thing in enumerate(["cones", "boxes", "spheres"])
]


def packed(spec, example, seed=0):
    return pp.build(spec, tokenizer=TOKENIZER)(example, np.random.default_rng(seed))


def pieces(text):
    """The texts, each between <s> and </s>, before padding."""
    ids = text[text != TOKENIZER.pad]
    rows = np.split(ids, np.flatnonzero(ids == TOKENIZER.bos)[1:])
    assert all(row[0] == TOKENIZER.bos and row[-1] == TOKENIZER.eos for row in rows)
    return [TOKENIZER.decode(row[1:-1].tolist()) for row in rows]


def test_packs_all_questions_that_fit_with_loss_on_the_answers_alone():
    out = packed("pack(64, of='questions')", {"questions": QUESTIONS})
    wanted = {f"{q['question']} {q['answers'][0]}" for q in QUESTIONS}
    assert set(pieces(out["text"])) == wanted
    answers = sum(len(TOKENIZER.encode_after(q["answers"][0])) + 1 for q in QUESTIONS)
    assert out["mask_loss"].sum() == answers
    assert (out["text"][out["mask_loss"] > 0] == TOKENIZER.eos).sum() == 3
    starts = np.flatnonzero(out["text"] == TOKENIZER.bos)
    assert out["segment"][starts].tolist() == [0, 1, 2]
    assert (np.flatnonzero(np.diff(out["segment"])) + 1).tolist() == starts[1:].tolist()
    assert (out["mask_input"] == (out["text"] != TOKENIZER.pad)).all()


def test_a_question_without_an_answer_is_left_out():
    asked = [*QUESTIONS[:1], {"question": "How many tori are there?", "answers": []}]
    for seed in range(4):
        out = packed("pack(64, of='questions')", {"questions": asked}, seed)
        assert pieces(out["text"]) == ["How many cones are there? 0"]
    with pytest.raises(BadSample, match="no question with an answer"):
        packed("pack(64, of='questions')", {"questions": asked[1:]})


def test_each_text_is_whole_or_absent_and_the_order_is_random():
    captions = ["A red cone.", "Two boxes stand on the sand.", "A sphere is in front of a torus."]
    orders = set()
    for seed in range(20):
        out = packed("pack(20, of='captions')", {"captions": captions}, seed)
        assert out["text"].shape == out["mask_loss"].shape == (20,)
        assert set(pieces(out["text"])) <= set(captions)
        orders.add(tuple(pieces(out["text"])))
    assert len(orders) > 3


def test_one_text_is_what_tokenize_makes_of_it():
    one = packed("caption()|tokenize(20)", {"captions": ["A red cone."]})
    out = packed("pack(20, of='captions')", {"captions": ["A red cone."]})
    for key in ("text", "mask_input", "mask_ar", "segment", "mask_loss"):
        np.testing.assert_array_equal(out[key], one[key])


def test_refuses_what_it_cannot_pack():
    with pytest.raises(UserError, match=r"pack\.of is 'question'; it must be 'captions' or 'questions'"):
        packed("pack(20, of='question')", {})
    with pytest.raises(UserError, match="task='all'"):
        packed("pack(20, of='questions')", {"question": "How many?"})
    with pytest.raises(BadSample):
        packed("pack(20, of='questions')", {"questions": []})
    with pytest.raises(UserError, match="caption"):
        packed("pack(20, of='captions', styel='reference')", {})
