"""Styles that put an answer's words into their base forms, as OK-VQA's are scored with BLIP-2.

Source: salesforce/LAVIS, models/blip2_models/blip2.py (`_lemmatize`): spaCy's nouns and verbs, and no other word.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.pp.blip import Blip

MODEL = "en_core_web_sm"  # of spaCy, as in LAVIS


class Spacy(Blip):
    """BLIP's style with answers as LAVIS writes them: nouns and verbs in the base form that spaCy finds."""

    def answer_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        words = _pipeline()(super().answer_said(tokenizer, prompt, ids))
        return " ".join(word.lemma_ if word.pos_ in ("NOUN", "VERB") else word.text for word in words)


class Simplemma(Blip):
    """The same by simplemma's table, which takes no model and knows no parts of speech: 'best' becomes 'good', too."""

    def answer_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        lemmatize = _module("simplemma", "pip install simplemma").lemmatize
        return " ".join(lemmatize(word, lang="en") for word in super().answer_said(tokenizer, prompt, ids).split())


@functools.cache
def _pipeline() -> Any:
    remedy = f"pip install spacy && python -m spacy download {MODEL}"
    try:
        return _module("spacy", remedy).load(MODEL)
    except OSError:
        raise UserError(f"spaCy has no model {MODEL}: {remedy}, or take the style blip_simplemma.") from None


def _module(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"The style of these answers needs {name}: {remedy}.") from None
