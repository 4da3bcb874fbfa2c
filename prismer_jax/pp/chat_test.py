"""Conversations become tokens: whose words are learnt, where images stand, what does not fit."""

import numpy as np
import pytest
import tokenizers

from prismer_jax import pp
from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp import chat, fast_tokenizers


def letters(folder, extra=chat.EXTRA_TOKENS):
    """A tokenizer with a token a letter: 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>, which ends and fills."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(special)
    (folder / "tokenizer.json").write_text(fast_tokenizers.extended(model.to_str(), extra))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    return pp.tokenizer.load(f"tokenizers:{folder}")


@pytest.fixture
def tokenizer(tmp_path):
    return letters(tmp_path)


def run(spec, example, tokenizer):
    return pp.build(spec, tokenizer=tokenizer)(example, np.random.default_rng(0))


def spelled(tokenizer, ids):
    return tokenizer._model.decode(list(ids), skip_special_tokens=False)


def test_extra_tokens_follow_the_language_models_own(tokenizer):
    assert [tokenizer.id_of(token) for token in chat.EXTRA_TOKENS] == list(range(259, 259 + 66))
    assert (tokenizer.eos, tokenizer.pad) == (2, 2)
    assert tokenizer.id_of("<|video|>") is None


def test_loss_is_on_what_the_assistant_says_and_its_end(tokenizer):
    turns = [{"user": "Who?", "assistant": "Me."}, {"user": "And?", "assistant": "You."}]
    out = run("chat(90, 2)", {"turns": turns, "weight": 2.0}, tokenizer)
    text = spelled(tokenizer, out["text"][out["mask_input"]])
    assert text == (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nYou.<|im_end|>\n"
    )
    assert spelled(tokenizer, out["text"][out["mask_loss"] > 0]) == "Me.<|im_end|>\nYou.<|im_end|>\n"
    assert set(out["mask_loss"].tolist()) == {0.0, 2.0}
    assert out["mask_input"][0]
    assert not out["mask_input"][-1]


def test_a_prompt_is_padded_on_the_left_and_ends_before_the_answer(tokenizer):
    example = {"turns": [{"user": "Who?"}], "grids": [(1, 2)], "image_mask": np.array([True] * 3 + [False])}
    out = run("chat(70, 2)", example, tokenizer)
    text = spelled(tokenizer, out["text"][out["mask_input"]])
    image = "<|image|><|image|>"
    photo = f"<|global_image|>{image}<row_1_col_1>{image}<row_1_col_2>{image}"
    assert text == f"<|im_start|>user\n{photo}Who?<|im_end|>\n<|im_start|>assistant\n"
    assert out["mask_input"][-1]
    assert not out["mask_input"][0]
    assert not out["mask_loss"].any()


def test_version_01_reads_its_photo_in_front_of_the_text(tokenizer):
    out = run("chat(60, style='answer')", {"turns": [{"user": "Who?", "assistant": "Me"}]}, tokenizer)
    assert spelled(tokenizer, out["text"][out["mask_input"]]) == "Question: Who? Answer:Me<|im_end|>"
    assert spelled(tokenizer, out["text"][out["mask_loss"] > 0]) == "Me<|im_end|>"


def test_version_02_has_its_photo_in_front_of_the_question(tmp_path):
    tokenizer = letters(tmp_path, chat.EXTRA_TOKENS[:1])
    example = {"turns": [{"user": "Who?"}], "grids": [(1, 1)], "image_mask": np.array([True])}
    out = run("chat(60, 2, style='answer')", example, tokenizer)
    assert spelled(tokenizer, out["text"][out["mask_input"]]) == "<|image|><|image|>Question: Who? Answer:"


def test_words_that_spell_an_image_take_no_images_place(tokenizer):
    example = {"turns": [{"user": "a <|image|>?"}], "grids": [(1, 1)], "image_mask": np.array([True])}
    out = run("chat(60, 2)", example, tokenizer)
    assert (out["text"] == 259).sum() == 2


def test_turns_are_made_of_captions_and_questions(tokenizer):
    asked = {"question": "Who?", "answers": ["me", "me", "you"]}
    assert run("turns()", asked, None)["turns"] == [{"user": "Who?", "assistant": "me"}]
    assert run("turns('Say.')", {"captions": ["a dog"]}, None)["turns"] == [{"user": "Say.", "assistant": "a dog"}]
    every = run("turns(of='questions')", {"questions": [asked, {"question": "B?", "answers": ["b"]}]}, None)["turns"]
    assert sorted(turn["assistant"] for turn in every) == ["b", "me"]
    silent = {"question": "C?", "answers": []}
    every = run("turns(of='questions')", {"questions": [silent, asked]}, None)["turns"]
    assert every == [{"user": "Who?", "assistant": "me"}]
    with pytest.raises(BadSample, match="has no questions to talk about"):
        run("turns(of='questions')", {"questions": [silent]}, None)
    assert run("ask('Say.')", {}, None)["turns"] == [{"user": "Say."}]
    assert run("ask(wording='{question} Letter!')", asked, None)["turns"] == [{"user": "Who? Letter!"}]


def test_of_weighted_answers_the_heaviest_is_learnt():
    asked = {"question": "Who?", "answers": ["me", "you"], "answer_weights": [0.1, 0.9]}
    every = {"questions": [asked]}
    for spec, example in (("turns()", asked), ("turns(of='questions')", every)):
        assert run(spec, example, None)["turns"] == [{"user": "Who?", "assistant": "you"}]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"turns": []}, "nothing to say"),
        ({"turns": [{"user": "x" * 90}]}, "tokens, more than chat"),
        ({"turns": [{"user": "x"}], "image_mask": np.array([True])}, "0 tokens of images for 1 tiles"),
        ({"turns": [{"user": "x"}], "grids": [(9, 1)]}, "9x1 tiles"),
    ],
)
def test_samples_that_do_not_fit_are_left_out(tokenizer, example, message):
    with pytest.raises(BadSample, match=message):
        run("chat(60, 2)", example, tokenizer)


def test_photos_without_texts_and_tokenizers_without_images_say_so(tmp_path):
    with pytest.raises(BadSample, match="has no texts"):
        run("turns()", {}, None)
    with pytest.raises(UserError, match="has no <|image|>".replace("|", r"\|")):
        pp.build("chat(60)", tokenizer=letters(tmp_path, ()))


def test_plain_text_is_what_the_user_says_as_it_is(tmp_path):
    said = "Question: Who? \nAnswer only with the letter! \nAnswer:"
    out = run("chat(80, style='plain')", {"turns": [{"user": said, "assistant": "B"}]}, letters(tmp_path, ()))
    tokenizer = pp.tokenizer.load(f"tokenizers:{tmp_path}")
    assert spelled(tokenizer, out["text"][out["mask_input"]]) == f"{said}B<|im_end|>"


def test_an_examples_own_prompt_takes_the_place_of_the_default():
    assert run("ask('Say.')", {"prompt": "Who?"}, None)["turns"] == [{"user": "Who?"}]
    assert chat.takes_prompt("decode|tiles(32)|ask()|chat(60)")
    assert not chat.takes_prompt("decode|resize(32)|caption_prompt('ask')|tokenize(3)")
