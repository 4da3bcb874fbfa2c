"""Ops on text: captions and questions become `prompt` and `target`, and these become token ids and masks.

Training text is `<s> prompt target </s>`, contiguous, with loss on the target and `</s>`. A prompt without target, for
generation, is `<s> prompt`. `<s>` and `</s>` stand for the tokenizer's `bos` and `eos`. How texts are written, and what
a model wrote is read back, says a style.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax import registry
from prismer_jax.batch import prompts
from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp.ops import Example, Op, register

STYLES = {
    "plain": "prismer_jax.pp.text:Plain",
    "reference": "prismer_jax.pp.reference:Reference",
    "blip": "prismer_jax.pp.blip:Blip",
} | {"blip_spacy": "prismer_jax.pp.blip:Spacy", "blip_simplemma": "prismer_jax.pp.blip:Simplemma"}


class Plain:
    """How texts are cleaned before training, and read back from what a model wrote: as they are, but for white space.

    Other styles, such as that of the official code, change more.

    Attributes:
      max_words: of a text, where an op says nothing; None for all.
    """

    max_words: int | None = None

    def prefix(self, text: str) -> str:
        """Returns a prefix of captions as it has to be given."""
        return text

    def caption(self, text: str, max_words: int | None = None, prefix: str | None = None) -> str:
        """Returns a caption, which follows a prefix; without one, prefix is None."""
        return " ".join(text.split()[:max_words])

    def question(self, text: str, max_words: int | None = None) -> str:
        """Returns a question, with a question mark if it ends without punctuation."""
        text = " ".join(text.split()[:max_words])
        return f"{text}?" if text and text[-1].isalnum() else text

    def choice(self, text: str, kind: Literal["answer", "class"]) -> str:
        """Returns an answer, or the name of a class, as a model learns it and as it is ranked."""
        return text

    def caption_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Returns the caption that generated `ids` spell, after the ids of a prompt."""
        return " ".join(tokenizer.decode(ids).split())

    def answer_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Returns the answer that generated `ids` spell, as the model wrote it; the question does not matter."""
        return tokenizer.decode(ids).strip()


def style_of(name: str) -> Plain:
    """Returns the style of a name in STYLES; raises UserError if there is none."""
    return registry.imported("style", name, STYLES)()


@register
def caption(prefix: str | None = "", style: str = "plain", max_words: int | None = None) -> Op:
    """Makes the training text of a captioned photo: prompt = prefix, target = one of `captions`.

    With prefix=None a style knows that there is none, as in the reference's pretraining.

    Raises (the op):
      BadSample: the example has no caption, or an empty one.
    """
    texts = style_of(style)
    limit = texts.max_words if max_words is None else max_words
    if prefix is not None and texts.prefix(prefix) != prefix:
        raise UserError(f"caption(prefix={prefix!r}, style={style!r}): write it {texts.prefix(prefix)!r}.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        if not (captions := example.get("captions")):
            raise BadSample(f"example {example.get('id', '?')} has no caption. Take it off the list or caption it.")
        text = read_text(example, "caption", captions[int(rng.integers(len(captions)))])
        if not (target := texts.caption(text, limit, prefix)).strip():
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
    style: str = "plain", max_words: int | None = None, answer: Literal["sample", "majority"] = "sample"
) -> Op:
    """Makes a question's training text: prompt = question, target = one of `answers`, loss times its `weight`.

    'sample' draws an answer in proportion to how often it was given, or to `answer_weights` where the example has
    them; 'majority' takes the most frequent (heaviest), the first among equals.

    Raises (the op):
      BadSample: the question is empty, or there is no answer.
    """
    texts = style_of(style)

    def op(example: Example, rng: np.random.Generator) -> Example:
        if not (target := " ".join(pick(example, answer, rng).split())):
            raise BadSample(f"example {example.get('id', '?')} has an empty answer.")
        asked = _question(example, texts, max_words)
        return dict(example, prompt=asked, target=texts.choice(target, "answer"), cut="prompt")

    return op


@register
def question_prompt(style: str = "plain", max_words: int | None = None) -> Op:
    """Makes the text that an answer is generated from: the question alone."""
    texts = style_of(style)

    def op(example: Example, rng: np.random.Generator) -> Example:
        return {**_without_target(example), "prompt": _question(example, texts, max_words)}

    return op


def _without_target(example: Example) -> Example:
    return {key: value for key, value in example.items() if key not in ("target", "cut")}


def _question(example: Example, texts: Plain, max_words: int | None) -> str:
    asked = read_text(example, "question", example.get("question") or "")
    if not (text := texts.question(asked, texts.max_words if max_words is None else max_words)):
        raise BadSample(f"example {example.get('id', '?')} has an empty question ({example.get('question')!r}).")
    return text


def pick(example: Example, how: Literal["sample", "majority"], rng: np.random.Generator) -> str:
    """Returns one of an example's answers; see `question`, whose `answer` is `how`."""
    if not (answers := example.get("answers")):
        raise BadSample(f"example {example.get('id', '?')} has no answer to train on.")
    weights = example.get("answer_weights")
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise BadSample(f"example {example.get('id', '?')} has {len(answers)} answers but answer_weights {weights}.")
    if how == "majority":
        votes: Counter[str] = Counter()
        for text, weight in zip(answers, weights, strict=True):
            votes[text] += weight
        return read_text(example, "answer", votes.most_common(1)[0][0])
    edges = list(itertools.accumulate(weights))
    return read_text(example, "answer", answers[bisect.bisect_right(edges, rng.random() * edges[-1])])


def read_text(example: Example, what: str, text: Any) -> str:
    """Returns a text as it is; raises BadSample for what is none, such as pandas's empty cell or half a UTF-16 pair."""
    if isinstance(text, str) and not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    raise BadSample(f"example {example.get('id', '?')} has the {what} {text!r}, which is no text.", "no text")


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
        text, real = np.full(length, tokenizer.pad, np.int32), np.zeros(length, bool)
        loss = np.zeros(length, np.float32)
        text[start:end], real[start:end], loss[end - scored : end] = ids, True, example.get("weight", 1.0)
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
