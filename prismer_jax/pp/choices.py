"""Texts to choose among after a prompt: read from a list, and written as ids."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.pp.text import style_of


def read_choices(choices: Iterable[str] | storage.PathLike) -> list[str]:
    """Returns texts to choose among, each once, from a list of them or a JSON file with a list.

    Raises:
      UserError: there is no such list, or not every entry is a text.
    """
    where, choices = "the choices", list(choices) if isinstance(choices, Iterator) else choices
    if isinstance(choices, storage.PathLike):
        where = os.fspath(choices)
        try:
            choices = json.loads(storage.on_disk(choices).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a JSON file with a list of texts ({error}).") from None
    if not isinstance(choices, list | tuple) or not choices:
        raise UserError(f"{where}: not a list of texts.")
    if wrong := [text for text in choices if not isinstance(text, str) or not text.strip()]:
        raise UserError(f"{where}: {wrong[0]!r} is no text to choose.")
    return list(dict.fromkeys(choices))


def choice_tokens(
    tokenizer: Any, texts: Sequence[str], kind: Literal["answer", "class"], style: str = "plain"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids int32 [n, l] of texts to choose among after a prompt, each with its end, and bool [n, l]: no padding.

    `kind` says what the texts are, `style` how that is written (`pp.text.STYLES`).
    """
    rows = [[*tokenizer.encode_after(style_of(style).choice(text, kind)), tokenizer.eos] for text in texts]
    mask = np.arange(max(map(len, rows))) < np.array([[len(ids)] for ids in rows])
    tokens = np.full(mask.shape, tokenizer.pad, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
