"""--tokenizer of tools.convert is one thing in all families."""

import shutil

import pytest

from prismer_jax.errors import UserError
from prismer_jax.pp import tokenizer
from prismer_jax.weights import tokenizer_flag


def test_a_tokenizer_is_a_spec_or_a_path_of_the_familys_kind(tmp_path):
    shutil.copy(tokenizer.SCENES, tmp_path / "own.model")
    (tmp_path / "a:b").mkdir()
    shutil.copy(tokenizer.SCENES, tmp_path / "a:b" / "own")
    for given, kind in (
        ("scenes", "roberta"),
        (f"sentencepiece:{tmp_path}/own.model", "tokenizers"),
        (f"{tmp_path}/own.model", "opt"),
        (f"{tmp_path}/a:b/own", "sentencepiece"),
    ):
        assert tokenizer_flag.read(given, kind).vocab_size == 640, given
    spec, files = tokenizer_flag.carried(tokenizer_flag.read(f"{tmp_path}/own.model", "roberta"))
    assert (spec, list(files)) == ("sentencepiece:own.model", ["own.model"])
    assert tokenizer.load_from(tmp_path, spec).vocab_size == 640


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("robberta:folder", r"Unknown tokenizer 'robberta'\. Did you mean 'roberta'"),
        ("nowhere", r"nowhere/vocab\.json: no such file; the tokenizer 'roberta:nowhere' needs it"),
        ("nowhere.model", r"nowhere\.model: no such file"),
        ("tokenizers:", "names no folder or file"),
        ("roberta", r"roberta/vocab\.json: no such file"),  # a folder may be called as its kind
    ],
)
def test_what_is_no_tokenizer_is_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer_flag.read(given, "roberta")
    assert "\n" not in str(error.value)
