"""What PaliGemma is asked, made from a template of its transfers, and one of the texts that may follow.

Source: google-research/big_vision, configs/proj/paligemma/transfers/*.py (strfmt, strjoin, choice) and
pp/proj/paligemma/sciqa_ops.py.
"""

from __future__ import annotations

import re

import numpy as np

from prismer_jax.errors import BadSample
from prismer_jax.pp.ops import Example, Op, register
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
        suffix = said[int(rng.integers(len(said)))] if learn else ""
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
