"""Several texts about one photo in one sequence, so that all of them learn from encoding the photo once."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp.ops import Example, Op, make, register
from prismer_jax.pp.text import tokenize


@register
def pack(length: int, of: Literal["captions", "questions"], *, tokenizer: Any, **options: Any) -> Op:
    """Writes the keys of `tokenize` for as many texts in random order as fit, each of them a `segment` of its own.

    They are `<s> prompt target </s> <s> prompt target </s> ...`: the encoder is most of the work of a small model, and
    its cost is shared by all of them. No text sees another; none is cut but a first that is too long.

    Args:
      length: tokens of the sequence.
      of: 'captions', or 'questions', those with answers: of examples that carry all of theirs (task='all').
      options: of the op `caption` or `question`, such as style.

    Raises (the op):
      BadSample: as those ops and `tokenize`.
    """
    write = tokenize(length, tokenizer=tokenizer)
    read = make(of.removesuffix("s"), (), options, None)

    def texts(example: Example) -> list[Example]:
        if of == "captions":
            return [{**example, "captions": [text]} for text in example.get("captions") or [""]]
        if "questions" not in example:
            raise UserError("pack(of='questions') needs all questions of a photo: load the data with task='all'.")
        return [{**example, **asked} for asked in example["questions"] if asked.get("answers")]

    def op(example: Example, rng: np.random.Generator) -> Example:
        if not (candidates := texts(example)):
            raise BadSample(f"example {example.get('id', '?')} has no question with an answer. Take it off the list.")
        packed, used = None, 0
        for number, index in enumerate(rng.permutation(len(candidates))):
            one = write(read(candidates[index], rng), rng)
            ids = int(one["mask_input"].sum())
            if packed is None:
                packed, used = one, ids
            elif used + ids <= length:
                for key in ("text", "mask_input", "mask_loss"):
                    packed[key][used : used + ids] = one[key][:ids]
                packed["segment"][used:] = number
                used += ids
        return packed

    return op
