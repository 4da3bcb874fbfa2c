"""Prefix and suffix as PaliGemma reads them: the prefix sees itself and the image whole, the suffix is learnt.

`affix` makes both of a template of its transfers and one of the texts that may follow, `prefix_lm` the tokens of both.

Source: google-research/big_vision, configs/proj/paligemma/transfers/*.py (strfmt, strjoin, choice) and
pp/proj/paligemma/ops.py and sciqa_ops.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from prismer_jax.errors import BadSample
from prismer_jax.pp.ops import Example, Op, register
from prismer_jax.pp.text import pick, read_text
from prismer_jax.scores.choice import LETTERS

SEPARATOR = " \t "  # between choices
_FIELD = re.compile(r"\{(\w+)\}")


@register
def affix(template: str, lettered: bool = False, lower: bool = False, learn: bool = True) -> Op:
    """Makes `turns` of one turn: a prefix, and a suffix drawn from an example's `answers` or `captions`.

    Args:
      template: of the prefix, in which '{question}', '{choices}' or another field stands for what an example has; one
        that has a `prefix` is asked that, and one with a `prompt`, what a user says, that.
      lettered: write choices as '(A) one, (B) two', in training in random order, and say 'The answer is B.'.
      lower: say the suffix in lower case.
      learn: False asks only.

    Raises (the op):
      BadSample: an example lacks a field, or a text to learn from.
    """
    fields = _FIELD.findall(template)

    def op(example: Example, rng: np.random.Generator) -> Example:
        name, said = example.get("id", "?"), example.get("answers") or example.get("captions") or []
        choices = list(example.get("choices") or ())
        if learn and not said:
            raise BadSample(f"example {name} has no text to learn from.", "no text")
        suffix = ""
        if learn:
            weighted = example.get("answer_weights")
            suffix = pick(example, "sample", rng) if weighted else said[int(rng.integers(len(said)))]
            suffix = read_text(example, "suffix", suffix)
        if lettered and learn:
            choices = [choices[number] for number in rng.permutation(len(choices))]
            if suffix not in choices:
                raise BadSample(f"example {name}: the answer {suffix!r} is none of its choices.", "no such choice")
            suffix = f"The answer is {LETTERS[choices.index(suffix)]}."
        joined = ", ".join(f"({i}) {text}" for i, text in zip(LETTERS, choices, strict=False)) if lettered else None
        values = {**example, "choices": SEPARATOR.join(choices) if joined is None else joined}
        prefix = example.get("prompt") or example.get("prefix")
        if prefix is None:
            if lacking := [key for key in fields if not isinstance(values.get(key), str)]:
                raise BadSample(f"example {name} has no text {lacking[0]!r}, which is asked for.", "no prompt")
            prefix = _FIELD.sub(lambda match: values[match[1]], template)
        turn = {"user": prefix}
        if learn:
            turn["assistant"] = suffix.lower() if lower else suffix
        return {**example, "turns": [turn]}

    return op


@register
def prefix_lm(length: int, sep: str = "\n", sticky: bool = False, learn: bool = True, *, tokenizer: Any) -> Op:
    """Writes `text`, `mask_input`, `mask_ar`, `segment` and `mask_loss` [length] of the first of an example's `turns`.

    What a user says is the prefix, what an assistant says the suffix (see the ops `turns` and `ask`). The text is
    `bos`, prefix, separator, suffix, `eos`, each tokenised for itself, so that no word reaches over a boundary; what is
    too long is cut on the right. Without a suffix it is a prompt, padded on the left.

    Args:
      sep: between prefix and suffix.
      sticky: keep the end of a suffix that is cut, `eos`.
      learn: False makes a prompt also of a turn with a suffix, with which its continuation begins.

    Raises (the op):
      BadSample: there is no turn, or the prefix leaves no room for a suffix.
    """
    between = tokenizer.encode(sep)

    def op(example: Example, rng: np.random.Generator) -> Example:
        name = example.get("id", "?")
        if not example.get("turns"):
            raise BadSample(f"example {name} has nothing to say: put turns() or ask() before prefix_lm.")
        turn = example["turns"][0]
        prefix = [tokenizer.bos, *tokenizer.encode(turn["user"]), *between]
        suffix = tokenizer.encode(turn["assistant"]) if "assistant" in turn else []
        learnt = learn and "assistant" in turn
        if learnt:
            suffix.append(tokenizer.eos)
        if len(prefix) > length - learnt:
            raise BadSample(
                f"example {name}: its prefix of {len(prefix)} tokens leaves no room in prefix_lm({length}).",
                "too many tokens",
            )
        ids = cut(prefix + suffix, length, sticky and learnt)
        start = 0 if learnt else length - len(ids)
        text, columns = np.full(length, tokenizer.pad, np.int32), np.arange(length) - start
        text[start : start + len(ids)] = ids
        behind = columns >= len(prefix)
        return {
            **example,
            "text": text,
            "mask_input": (columns >= 0) & (columns < len(ids)),
            "mask_ar": behind.astype(np.int32),
            "segment": np.zeros(length, np.int32),
            "mask_loss": (behind & (columns < len(ids)) & learnt) * np.float32(example.get("weight", 1.0)),
            "_cut": example.get("_cut", 0) + (len(prefix) + len(suffix) > length),
        }

    return op


def cut(ids: list[int], length: int, sticky: bool) -> list[int]:
    """Returns at most `length` ids; where some are cut, `sticky` keeps the last of all."""
    return [*ids[: length - 1], ids[-1]] if sticky and len(ids) > length else ids[:length]
