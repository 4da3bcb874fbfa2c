"""Ops on text: captions and questions become `prompt` and `target`, and these become token ids and masks.

Training text is `<s> prompt target </s>`, contiguous, with loss on the target and `</s>`. A prompt without target, for
generation, is `<s> prompt`. `<s>` and `</s>` stand for the tokenizer's `bos` and `eos`. What a model then wrote becomes
text again by `caption_said` and `answer_said`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax.batch import prompts
from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp.ops import Example, Op, register

Style = Literal["plain", "reference"]
_SPECIAL = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
REFERENCE_WORDS = 30  # the official data sets cut every text to so many words; 'plain' cuts none by default


def clean_caption(text: str, style: Style = "plain", max_words: int | None = None) -> str:
    """Collapses white space; 'reference' also drops punctuation and lower-cases all but a first letter.

    'reference' gives what the official models were trained on (dataset/utils.py), odd corners included: a leading
    space or symbol prevents the capital, a single tab survives.
    """
    if style == "plain":
        return " ".join(text.split()[:max_words])
    text = re.sub(r"\s{2,}", " ", text.capitalize().translate(_SPECIAL))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])


def clean_question(text: str, style: Style = "plain", max_words: int | None = None) -> str:
    """Cleans a question like a caption; both styles end it with a question mark if it ends without punctuation.

    'reference' puts one after any last character but a question mark, keeps double spaces and counts words by them.
    """
    if style == "plain":
        text = " ".join(text.split()[:max_words])
        return f"{text}?" if text and text[-1].isalnum() else text
    words = text.capitalize().translate(_SPECIAL).strip().split(" ")
    text = " ".join(words[:max_words])
    return text if not text or text.endswith("?") else f"{text}?"


def _limit(op: str, style: str, max_words: int | None) -> int | None:
    if style not in ("plain", "reference"):
        raise UserError(f"{op}(style={style!r}): 'plain' or 'reference'.")
    return REFERENCE_WORDS if max_words is None and style == "reference" else max_words


# What transformers 4.26.1 replaces, in this order, in all that it decodes (tokenization_utils_base.py).
_TIDIED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def caption_said(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], style: Style = "plain") -> str:
    """Returns the caption that generated `ids` spell, after the ids of a prompt.

    'reference' gives what the official result files hold (model/prismer_caption.py, train_caption.py): the prompt is
    cut off by its number of characters and a space, and the caption made a sentence with a capital and a full stop.
    """
    if style == "plain":
        return " ".join(tokenizer.decode(ids).split())
    before = _tidy(tokenizer.decode(prompt))
    return _tidy(tokenizer.decode([*prompt, *ids]))[len(before) + bool(before) :].capitalize() + "."


def answer_said(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], style: Style = "plain") -> str:
    """Returns the answer that generated `ids` spell, as the model wrote it; the ids of the question do not matter.

    'reference' tidies punctuation and writes in lower case, as the official code does (model/prismer_vqa.py).
    """
    text = tokenizer.decode(ids)
    return text.strip() if style == "plain" else _tidy(text).strip().lower()


def _tidy(text: str) -> str:
    for spaced in _TIDIED:
        text = text.replace(spaced, spaced.strip())
    return text


@register
def caption(
    prefix: str | None = "",
    style: Style = "plain",
    max_words: int | None = None,
) -> Op:
    """Makes the training text of a captioned photo: prompt = prefix, target = one of `captions`.

    style='reference' cleans prefix and caption as one text, as the official code does: after a prefix, '' included, the
    caption is all lower case. Only prefix=None leaves its capital, as in the reference's pretraining.

    Raises (the op):
      BadSample: the example has no caption, or an empty one.
    """
    limit = _limit("caption", style, max_words)
    if style == "reference" and prefix is not None and clean_caption(prefix, style) != prefix:
        raise UserError(f"caption(prefix={prefix!r}, style='reference'): write it {clean_caption(prefix, style)!r}.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        captions = example.get("captions") or []
        if not captions:
            raise BadSample(f"example {example.get('id', '?')} has no caption. Take it off the list or caption it.")
        text = captions[int(rng.integers(len(captions)))]
        if style == "reference" and prefix is not None:
            # The leading space, of an empty prefix too, is the reference's: no capital then.
            target = clean_caption(f"{prefix} {text}", style, limit).removeprefix(prefix).removeprefix(" ")
        else:
            target = clean_caption(text, style, limit)
        if not target.strip():
            raise BadSample(f"example {example.get('id', '?')} has an empty caption ({text!r}).")
        return dict(example, prompt=prefix or "", target=target, cut="target")

    return op


@register
def caption_prompt(prefix: str = "") -> Op:
    """Makes the text that a caption is generated from: the prefix alone."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        return {**_without_target(example), "prompt": prefix}

    return op


@register
def question(
    style: Style = "plain",
    max_words: int | None = None,
    answer: Literal["sample", "majority"] = "sample",
) -> Op:
    """Makes a question's training text: prompt = question, target = one of `answers`, loss times its `weight`.

    'sample' draws an answer in proportion to how often it was given, or to `answer_weights` where the example has
    them; 'majority' takes the most frequent (heaviest), the first among equals.

    Raises (the op):
      BadSample: the question is empty, or there is no answer.
    """
    limit = _limit("question", style, max_words)
    if answer not in ("sample", "majority"):
        raise UserError(f"question(answer={answer!r}): 'sample' or 'majority'.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        target = " ".join(_pick(example, answer, rng).split())
        if not target:
            raise BadSample(f"example {example.get('id', '?')} has an empty answer.")
        if style == "reference":
            target = target.capitalize()
        return dict(example, prompt=_question(example, style, limit), target=target, cut="prompt")

    return op


@register
def question_prompt(style: Style = "plain", max_words: int | None = None) -> Op:
    """Makes the text that an answer is generated from: the question alone."""
    limit = _limit("question_prompt", style, max_words)

    def op(example: Example, rng: np.random.Generator) -> Example:
        return {**_without_target(example), "prompt": _question(example, style, limit)}

    return op


def _without_target(example: Example) -> Example:
    return {key: value for key, value in example.items() if key not in ("target", "cut")}


def _question(example: Example, style: Style, max_words: int | None) -> str:
    text = clean_question(example.get("question") or "", style, max_words)
    if not text:
        raise BadSample(f"example {example.get('id', '?')} has an empty question ({example.get('question')!r}).")
    # The reference capitalises questions once more, which lifts the first letter after a leading symbol.
    return text.capitalize() if style == "reference" else text


def _pick(example: Example, how: str, rng: np.random.Generator) -> str:
    answers = example.get("answers") or []
    if not answers:
        raise BadSample(f"example {example.get('id', '?')} has no answer to train on.")
    weights = example.get("answer_weights")
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers) or min(weights) < 0 or sum(weights) <= 0:
        raise BadSample(f"example {example.get('id', '?')} has {len(answers)} answers but answer_weights {weights}.")
    if how == "majority":
        votes: Counter[str] = Counter()
        for text, weight in zip(answers, weights, strict=True):
            votes[text] += weight
        return votes.most_common(1)[0][0]
    edges = np.cumsum(weights)
    return answers[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


@register
def tokenize(length: int, pad: Literal["left", "right"] | None = None, *, tokenizer: Any) -> Op:
    """Writes `text`, `mask_input`, `mask_ar`, `segment` and `mask_loss` [length], as prismer_jax.batch describes them.

    With a target: `<s> prompt target </s>`, padded right. Without: `<s> prompt`, padded left by default, so that the
    last column is the prompt's last token; pad='right' leaves pads between prompt and answer. (How the reference pads
    depends on the batch: that is a setting of decoding, `padding`, and works with either.)

    Too long a text is cut, never `</s>` and never an answer: captions at their end, questions before their answers.
    A cut is counted in `_cut`, so that the loader can report it.

    Raises (the op):
      BadSample: an answer (or a caption's prefix) alone does not fit.
    """
    if length < 3:
        raise UserError(f"tokenize({length}): at least 3, for the start, one token and the end.")
    if pad not in (None, "left", "right"):
        raise UserError(f"tokenize(pad={pad!r}): 'left' or 'right'.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "prompt" not in example:
            raise UserError("tokenize needs an op before it that makes a prompt: caption, question, caption_prompt ...")
        prompt = tokenizer.encode(example["prompt"]) if example["prompt"] else []
        target = example.get("target")
        if target is None:
            ids, scored = [tokenizer.bos, *prompt][:length], 0
            cut = len(prompt) + 1 > length
        else:
            words = tokenizer.encode_after(target) if prompt else tokenizer.encode(target)
            prompt, words, cut = _fit(example, prompt, words, length - 2)
            ids, scored = [tokenizer.bos, *prompt, *words, tokenizer.eos], len(words) + 1
        start = length - len(ids) if (pad or ("left" if target is None else "right")) == "left" else 0
        end = start + len(ids)
        column = np.arange(length)
        real = (start <= column) & (column < end)
        text = np.full(length, tokenizer.pad, np.int32)
        text[real] = ids
        loss = np.where(real & (column >= end - scored), example.get("weight", 1.0), 0).astype(np.float32)
        return {**example, **prompts(text, real), "mask_loss": loss, "_cut": example.get("_cut", 0) + cut}

    return op


def _fit(example: Example, prompt: list[int], target: list[int], room: int) -> tuple[list[int], list[int], bool]:
    if len(prompt) + len(target) <= room:
        return prompt, target, False
    protected, name = (target, "answer") if example["cut"] == "prompt" else (prompt, "prefix")
    if len(protected) >= room:
        raise BadSample(
            f"example {example.get('id', '?')}: its {name} of {len(protected)} tokens leaves no room in {room + 2}. "
            "Raise the length of tokenize."
        )
    if example["cut"] == "prompt":
        return prompt[: room - len(target)], target, True
    return prompt, target[: room - len(prompt)], True
