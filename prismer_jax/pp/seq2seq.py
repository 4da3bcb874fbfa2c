"""Texts of models with an encoder and a decoder, such as T5: what is read, and what is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp.ops import Example, Op, register


@register
def seq2seq(prompt: int, target: int = 0, *, tokenizer: Any) -> Op:
    """Writes `text`, `mask_input`, `mask_ar`, `segment` and `mask_loss` [prompt + target].

    The first `prompt` columns are for an encoder, the others for a decoder: each holds its text and `eos`, padded on
    the right. Too long a text loses its end, but not `eos`. Loss is on what is written, and `mask_ar` 1 there.

    Args:
      target: columns of what is written; 0 where nothing is learnt, as for generation.

    Raises (the op):
      BadSample: there is no target to learn.
    """
    if prompt < 1 or target < 0 or target == 1:
        raise UserError(f"seq2seq({prompt}, {target}): a prompt needs 1 column at least, a target 2, or 0 for none.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "prompt" not in example:
            raise UserError("seq2seq needs an op before it that makes a prompt: caption, question, caption_prompt ...")
        if target and not example.get("target"):
            raise BadSample(f"example {example.get('id', '?')} has no target to learn.", "no text")
        parts = [(example["prompt"], prompt), *([(example["target"], target)] if target else [])]
        text, real, cut = np.full(prompt + target, tokenizer.pad, np.int32), np.zeros(prompt + target, bool), 0
        for start, (words, room) in zip((0, prompt), parts, strict=False):
            ids = [*tokenizer.encode(words), tokenizer.eos]
            cut += len(ids) > room
            ids = ids if len(ids) <= room else [*ids[: room - 1], tokenizer.eos]
            text[start : start + len(ids)], real[start : start + len(ids)] = ids, True
        written = np.arange(prompt + target) >= prompt
        return {
            **example,
            "text": text,
            "mask_input": real,
            "mask_ar": written.astype(np.int32),
            "segment": np.zeros(prompt + target, np.int32),
            "mask_loss": (written & real) * np.float32(example.get("weight", 1.0)),
            "_cut": example.get("_cut", 0) + bool(cut),
        }

    return op


@register
def prefix_suffix() -> Op:
    """Splits a caption at random into a prefix, which joins the prompt, and a suffix of one word at least to be learnt.

    As T5 of BLIP-2 is trained on pairs of images and texts (arXiv 2301.12597, section 3.3).
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "target" not in example:
            raise UserError("prefix_suffix needs an op before it that makes a target: caption or question.")
        words = example["target"].split(" ")
        at = int(rng.integers(len(words)))
        prompt = " ".join([*([example["prompt"]] if example["prompt"] else []), *words[:at]])
        return dict(example, prompt=prompt, target=" ".join(words[at:]))

    return op
