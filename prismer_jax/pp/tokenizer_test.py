"""Tokenizers: their ids are those of the library that owns the file, whatever their layout."""

import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers

from prismer_jax import pp
from prismer_jax.errors import UserError
from prismer_jax.pp import tokenizer

TEXTS = [
    "A red sphere is left of the box.",
    "What color is the cone? It is blue.",
    "Two cats and 17 dogs, far away!",
] * 40
# {name: options of SentencePiece's trainer}: ids as in the published models; -1 is a token that a model is without.
LAYOUTS = {
    "t5": dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "gemma": dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3),
    "roberta": dict(bos_id=0, pad_id=1, eos_id=2, unk_id=3),
    "llama": dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sentencepiece_model_keeps_the_ids_of_its_file(layout, tmp_path):
    model, ids = io.BytesIO(), LAYOUTS[layout]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="bpe", vocab_size=90, minloglevel=2, **ids
    )
    (tmp_path / "x.model").write_bytes(model.getvalue())
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tok = tokenizer.load(f"sentencepiece:{tmp_path}/x.model")
    assert tok.vocab_size == 90
    assert tok.eos == ids["eos_id"]
    assert tok.bos == (ids["eos_id"] if ids["bos_id"] < 0 else ids["bos_id"])
    assert tok.pad == (ids["eos_id"] if ids["pad_id"] < 0 else ids["pad_id"])
    assert tok.special == {i for i in ids.values() if i >= 0}
    for text in TEXTS[:3]:
        assert tok.encode(text) == library.encode(text)
        assert tok.decode([*tok.encode(text), tok.eos, 7]) == text
    again = pickle.loads(pickle.dumps(tok))
    assert (again.encode(TEXTS[0]), again.pad) == (tok.encode(TEXTS[0]), tok.pad)


def test_a_published_sentencepiece_model_keeps_its_ids(shared):
    tok = tokenizer.load(f"sentencepiece:{shared}/data/sentencepiece/test_model.model")
    ids = tok.encode("A picture of a dog")
    assert ids == [104, 852, 14, 11, 93, 37]  # of sentencepiece 0.2; its <unk> <s> </s> are 0 1 2, and it has no pad
    assert (tok.vocab_size, tok.bos, tok.eos, tok.pad) == (1000, 1, 2, 2)
    assert tok.decode([tok.bos, *ids, tok.eos, 105]) == "A picture of a dog"
    assert tok.encode("東")[-1] == 0


@pytest.fixture
def json_folder(tmp_path):
    """A tokenizer of the tokenizers library, laid out as SmolLM2's: <|endoftext|> 0, <|im_start|> 1, <|im_end|> 2."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    options = dict(vocab_size=300, special_tokens=special, show_progress=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    model.enable_truncation(4)  # of its last user; no caption may be cut by it
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_json_of_the_tokenizers_library_keeps_its_ids(json_folder):
    library = tokenizers.Tokenizer.from_file(str(json_folder / "tokenizer.json"))
    library.no_truncation()
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (json_folder / "tokenizer_config.json").write_text(json.dumps(config))
    for spec in (json_folder, json_folder / "tokenizer.json"):
        tok = tokenizer.load(f"tokenizers:{spec}")
        assert (tok.bos, tok.eos, tok.pad, tok.special) == (1, 2, 2, {0, 1, 2})
        assert tok.vocab_size == library.get_vocab_size()
        for text in TEXTS[:3]:
            assert tok.encode(text) == library.encode(text, add_special_tokens=False).ids
            assert tok.decode([1, *tok.encode(text), 2, 9]) == text
    assert [path.name for path in tok.files()] == ["tokenizer.json", "tokenizer_config.json"]
    assert tokenizer.load_from(json_folder, "tokenizers:/elsewhere").encode("A cat") == tok.encode("A cat")


def test_special_tokens_of_a_lone_json_are_known_by_their_usual_spelling(json_folder):
    tok = tokenizer.load(f"tokenizers:{json_folder}")
    assert (tok.bos, tok.eos, tok.pad) == (1, 2, 2)


def test_wrong_jsons_are_named(json_folder):
    (json_folder / "tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    with pytest.raises(UserError, match=r"tokenizer\.json: names no token that ends a text"):
        tokenizer.load(f"tokenizers:{json_folder}")
    (json_folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not a tokenizer's configuration"):
        tokenizer.load(f"tokenizers:{json_folder}")
    (json_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer of the tokenizers library"):
        tokenizer.load(f"tokenizers:{json_folder}")


def test_roberta_agrees_with_transformers(shared):
    tok = tokenizer.load(f"roberta:{shared}/data/roberta")
    assert tok.vocab_size == 50265
    for line, ids in [
        ("A picture of a dog", [250, 2170, 9, 10, 2335]),
        ("Hello world", [31414, 232]),
        ("  two  spaces\n", [1437, 80, 1437, 5938, 50118]),
    ]:
        assert tok.encode(line) == ids
        assert tok.decode([0, *ids, 2, 2335]) == line
    assert tok.decode(tok.encode("</s> naïve 東京")) == "</s> naïve 東京"
    assert tok.decode([1, 50264, 60000, 31414]) == "Hello"
    assert pickle.loads(pickle.dumps(tok)).encode("Hello world") == [31414, 232]
    assert [path.name for path in tok.files()] == ["vocab.json", "merges.txt"]


def test_shipped_tokenizer_writes_any_text():
    tok = tokenizer.load("scenes")
    assert tok.files() == [tokenizer.SCENES]
    for line in ("A red sphere is left of the box.", "naïve 東京 </s> <s>"):
        ids = tok.encode(line)
        assert not tok.special.intersection(ids)
        assert tok.decode([tok.bos, *ids, tok.eos, *ids]) == line


def test_prefix_and_caption_tokenize_as_the_whole_text_does(shared):
    """So a caption generated after a prompt continues just as the training text did."""
    for spec in (f"roberta:{shared}/data/roberta", f"sentencepiece:{shared}/data/sentencepiece/test_model.model"):
        tok = tokenizer.load(spec)
        chain = pp.build("caption(prefix='A picture of')|tokenize(20)", tokenizer=tok)
        out = chain({"captions": ["a dog, running."]}, np.random.default_rng(0))
        whole = tok.encode("A picture of a dog, running.")
        assert out["text"][: len(whole) + 2].tolist() == [tok.bos, *whole, tok.eos]
        again = pickle.loads(pickle.dumps(chain))({"captions": ["a dog, running."]}, np.random.default_rng(0))
        np.testing.assert_array_equal(again["text"], out["text"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "vocab.json: no such file"),
        ({"vocab.json": "{", "merges.txt": ""}, "vocab.json: not a table"),
        ({"vocab.json": "[]", "merges.txt": ""}, "vocab.json: not a table"),
        ({"vocab.json": '{"<s>": 5}', "merges.txt": ""}, "not RoBERTa's, it has no token '<pad>'"),
        ({"vocab.json": '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}', "merges.txt": "a b c d"}, "merges.txt: not"),
        ({"vocab.json": '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}', "merges.txt": "q q"}, "merges.txt: not"),
    ],
)
def test_missing_and_garbled_roberta_files_are_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer.load(f"roberta:{tmp_path}")


def test_other_wrong_tokenizers_are_named(tmp_path):
    (tmp_path / "x.model").write_bytes(b"garbage" * 100)
    with pytest.raises(UserError, match=r"x\.model: not a SentencePiece model"):
        tokenizer.load(f"sentencepiece:{tmp_path}/x.model")
    (tmp_path / "empty.model").touch()
    with pytest.raises(UserError, match=r"empty\.model"):
        tokenizer.load(f"sentencepiece:{tmp_path}/empty.model")
    with pytest.raises(UserError, match="'roberta'"):
        tokenizer.load("robert:x")
    with pytest.raises(UserError, match="names no folder"):
        tokenizer.load("roberta")


def test_opt_begins_with_its_end_and_ends_with_a_line_break(tmp_path):
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "Ġ", "Ċ"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    opt = tokenizer.load(f"opt:{tmp_path}")
    assert (opt.bos, opt.eos, opt.pad, opt.encode("a\n")) == (2, 6, 1, [4, 6])
    assert opt.decode([4, 6, 4]) == "a"
