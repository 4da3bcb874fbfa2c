import numpy as np
import pytest

from prismer_jax import pp
from prismer_jax.errors import BadSample, UserError

TOKENIZER = pp.tokenizer.load("scenes")
PAD, EOS = TOKENIZER.pad, TOKENIZER.eos


def run(spec, example, seed=0):
    return pp.build(spec, TOKENIZER)(example, np.random.default_rng(seed))


def test_prompt_and_target_have_columns_and_an_end_of_their_own():
    out = run("seq2seq(6, 7)", {"prompt": "a", "target": "a red cone", "weight": 2.0})
    prompt, target = TOKENIZER.encode("a"), TOKENIZER.encode("a red cone")
    ends = len(prompt) + 1, len(target) + 1
    assert out["text"].tolist() == [
        *[*prompt, EOS],
        *[PAD] * (6 - ends[0]),
        *[*target, EOS],
        *[PAD] * (7 - ends[1]),
    ]
    columns = np.arange(13)
    np.testing.assert_array_equal(out["mask_input"], (columns < ends[0]) | ((columns >= 6) & (columns < 6 + ends[1])))
    np.testing.assert_array_equal(out["mask_ar"], columns >= 6)
    np.testing.assert_array_equal(out["mask_loss"], 2.0 * ((columns >= 6) & (columns < 6 + ends[1])))
    assert out["_cut"] == 0


def test_what_is_too_long_keeps_its_end():
    out = run("seq2seq(3, 4)", {"prompt": "a red red red cone", "target": "a big big big cone"})
    assert (out["text"][2], out["text"][6], out["_cut"]) == (EOS, EOS, 1)
    assert out["mask_input"].all()


def test_a_prompt_alone_is_asked_and_may_be_empty():
    out = run("caption_prompt()|seq2seq(4)", {})
    assert out["text"].tolist() == [EOS, PAD, PAD, PAD]
    assert not out["mask_loss"].any()
    assert not out["mask_ar"].any()


def test_captions_are_split_anywhere_but_behind_the_last_word():
    example = {"prompt": "", "target": "a big red cone"}
    parts = {(out["prompt"], out["target"]) for seed in range(60) if (out := run("prefix_suffix()", example, seed))}
    assert parts == {
        ("", "a big red cone"),
        ("a", "big red cone"),
        ("a big", "red cone"),
        ("a big red", "cone"),
    }
    assert run("prefix_suffix()", {"prompt": "say", "target": "cone"})["prompt"] == "say"


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="a target 2, or 0 for none"):
        pp.build("seq2seq(4, 1)", TOKENIZER)
    with pytest.raises(UserError, match="needs an op before it that makes a prompt"):
        run("seq2seq(4)", {})
    with pytest.raises(UserError, match="prefix_suffix needs an op before it that makes a target: caption"):
        run("prefix_suffix()", {"prompt": "a"})
    with pytest.raises(BadSample, match="has no target to learn"):
        run("seq2seq(4, 4)", {"prompt": "a", "target": ""})
