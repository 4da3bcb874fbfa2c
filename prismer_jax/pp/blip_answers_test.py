"""Answers in base forms: by spaCy's rules where it is installed, which a stand-in shows, and by simplemma's table."""

import sys
from types import SimpleNamespace

import pytest

from prismer_jax.errors import UserError
from prismer_jax.pp import blip
from prismer_jax.pp.text import style_of

WORDS = {"riding": ("VERB", "ride"), "bikes": ("NOUN", "bike"), "Larger": ("ADJ", "large")}
TOKENIZER = SimpleNamespace(decode=lambda ids: " Larger bikes riding\n")


@pytest.fixture
def spacy(monkeypatch):
    """Stands for spaCy with its model."""

    def read(text):
        known = ((word, *WORDS[word]) for word in text.split())
        return [SimpleNamespace(text=word, pos_=part, lemma_=lemma) for word, part, lemma in known]

    module = SimpleNamespace(load=lambda name: {"en_core_web_sm": read}[name])
    monkeypatch.setitem(sys.modules, "spacy", module)
    blip._spacy.cache_clear()
    yield module
    blip._spacy.cache_clear()


def test_nouns_and_verbs_alone_are_changed_as_in_lavis(spacy):
    assert style_of("blip_spacy").answer_said(TOKENIZER, [], []) == "Larger bike ride"


def test_a_table_changes_all_words():
    pytest.importorskip("simplemma")
    assert style_of("blip_simplemma").answer_said(TOKENIZER, [], []) == "large bike ride"


def test_what_is_missing_is_said_in_one_line(spacy, monkeypatch):
    def missing(name):
        raise OSError(name)

    spacy.load = missing
    with pytest.raises(UserError, match="spaCy has no model en_core_web_sm: pip install spacy && python -m spacy"):
        style_of("blip_spacy").answer_said(TOKENIZER, [], [])
    for name in ("spacy", "simplemma"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=f"needs {name}: pip install {name}"):
            style_of(f"blip_{name}").answer_said(TOKENIZER, [], [])
