"""Texts as the official code has them (NVlabs/prismer), odd corners included: what its models were trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from prismer_jax.pp.text import Plain

_SPECIAL = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
# What transformers 4.26.1 replaces, in this order, in all that it decodes (tokenization_utils_base.py).
_TIDIED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Reference(Plain):
    """Without punctuation, in lower case but for a first letter (dataset/utils.py)."""

    max_words = 30  # to which the official data sets cut every text

    def prefix(self, text: str) -> str:
        return self.caption(text)

    def caption(self, text: str, max_words: int | None = None, prefix: str | None = None) -> str:
        """Cleans prefix and caption as one text: after a prefix, '' included, the caption is all lower case.

        A leading space or symbol prevents the capital, a single tab survives.
        """
        if prefix is not None:
            return self.caption(f"{prefix} {text}", max_words).removeprefix(prefix).removeprefix(" ")
        text = re.sub(r"\s{2,}", " ", text.capitalize().translate(_SPECIAL))
        return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])

    def question(self, text: str, max_words: int | None = None) -> str:
        """Capitalises once more than the cleaning does, which lifts the first letter after a leading symbol."""
        return self.clean_question(text, max_words).capitalize()

    def clean_question(self, text: str, max_words: int | None = None) -> str:
        """Puts a question mark after any last character but one, keeps double spaces and counts words by them."""
        text = " ".join(text.capitalize().translate(_SPECIAL).strip().split(" ")[:max_words])
        return text if not text or text.endswith("?") else f"{text}?"

    def choice(self, text: str, kind: Literal["answer", "class"]) -> str:
        """Answers have a capital, names of classes none (model/prismer_vqa.py, dataset/classification_dataset.py)."""
        return text.capitalize() if kind == "answer" else text.lower()

    def caption_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Returns what the official result files hold (model/prismer_caption.py, train_caption.py).

        The prompt is cut off by its number of characters and a space, and the caption made a sentence with a capital
        and a full stop.
        """
        before = _tidy(tokenizer.decode(prompt))
        return _tidy(tokenizer.decode([*prompt, *ids]))[len(before) + bool(before) :].capitalize() + "."

    def answer_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Tidies punctuation and writes in lower case (model/prismer_vqa.py)."""
        return _tidy(tokenizer.decode(ids)).strip().lower()


def _tidy(text: str) -> str:
    for spaced in _TIDIED:
        text = text.replace(spaced, spaced.strip())
    return text
