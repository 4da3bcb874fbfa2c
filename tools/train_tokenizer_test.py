import pathlib

import pytest

from prismer_jax.errors import UserError
from prismer_jax.pp import tokenizer
from tools import train_tokenizer

TEXTS = [
    "A small red box is to the left of a large striped sphere.",
    "  two  spaces, and one at the end ",
    "naïve café, 日本語, Ελληνικά, 🙂👩‍👩‍👧, \u0301",
    "tab\tnew\nline",
    "</s> <s> <pad> <0x41> <unk>",
    "x" * 500,
    "",
]


def test_two_runs_give_the_same_file(tmp_path):
    one = train_tokenizer.train(40, 700)
    assert one == train_tokenizer.train(40, 700)
    (tmp_path / "x.model").write_bytes(one)
    assert tokenizer.load(f"sentencepiece:{tmp_path / 'x.model'}").vocab_size == 700


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--vocab-size 10",
            r"--vocab-size 10, --scenes 3: Vocabulary size is smaller than \w+. 10 vs \d+\.$",
        ),
        ("--vocab-size 90000", r"--vocab-size 90000, --scenes 3: Vocabulary size too high"),
        ("--scenes 0", r"--scenes 0: at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer.main(["--output", str(tmp_path / "x.model"), "--scenes", "3", *flags.split()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_the_shipped_model(text):
    model = tokenizer.load("scenes")
    ids = model.encode(text)
    assert model.decode(ids) == text
    assert not model.special.intersection(ids)


def test_words_of_the_scenes_are_one_piece_each():
    model = tokenizer.load("scenes")
    for text in ("A large checkered purple cylinder stands on a tiled floor.", "What color is the closest shape?"):
        assert len(model.encode(text)) == len(text.split()) + 1


def test_the_shipped_model_is_small():
    assert pathlib.Path(tokenizer.SCENES).stat().st_size < 50_000
    assert tokenizer.load("scenes").vocab_size == 640
