"""Conversations about photos, as nanoVLM's language model reads them: turns, and the tokens that photos stand for.

Source: huggingface/nanoVLM, models/config.py (template), data/processors.py (places of tiles), data/datasets.py (loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax import registry
from prismer_jax.batch import prompts
from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.pp.ops import Example, Op, register
from prismer_jax.pp.text import pick, read_text
from prismer_jax.pp.tiles import Grid

IMAGE, WHOLE = "<|image|>", "<|global_image|>"
MOST_ROWS = 8
# In the order of their ids, which follow those of the language model's own words.
EXTRA_TOKENS = (
    IMAGE,
    WHOLE,
    *(f"<row_{row}_col_{column}>" for row in range(1, MOST_ROWS + 1) for column in range(1, MOST_ROWS + 1)),
)
Turn = dict[str, str]  # 'user' and, where it is known, 'assistant'


def image_text(grids: Sequence[Grid], tokens: int, whole: bool = True) -> str:
    """Returns the text in whose IMAGE tokens the photos' tiles are read.

    Args:
      grids: rows and columns of each photo's tiles.
      tokens: how many a tile takes.
      whole: whether there is a token for the whole photo; without it a photo of one tile has a place.

    Raises:
      BadSample: a grid of more than 8 x 8 tiles.
    """
    parts = []
    for number, (rows, columns) in enumerate(grids):
        if max(rows, columns) > MOST_ROWS:
            raise BadSample(f"A photo of {rows}x{columns} tiles; there are tokens for {MOST_ROWS}x{MOST_ROWS}.")
        if len(grids) > 1:
            parts.append(f"<image: {number}>")
        if whole:
            parts.append(WHOLE + IMAGE * tokens)
            if rows == columns == 1:
                continue
        for row in range(1, rows + 1):
            parts += [f"<row_{row}_col_{column}>{IMAGE * tokens}" for column in range(1, columns + 1)]
    return "".join(parts)


def conversation(
    turns: Sequence[Turn], tokenizer: Any, system: str = "", begun: str = ""
) -> tuple[list[int], list[bool]]:
    """Returns the ids of a conversation, and which of them are learnt: what an assistant says, and its end.

    A last turn without an answer ends with the header of one, and what it has `begun` with.
    """
    roles = [(role, turn[role]) for turn in turns for role in ("user", "assistant") if role in turn]
    header = len(tokenizer.encode("<|im_start|>assistant\n"))
    ids: list[int] = []
    scored: list[bool] = []
    for role, words in [("system", system), *roles] if system else roles:
        new = tokenizer.encode(f"<|im_start|>{role}\n{words}<|im_end|>\n")
        ids += new
        scored += [role == "assistant" and column >= header for column in range(len(new))]
    if roles[-1][0] != "assistant":
        ids += tokenizer.encode(f"<|im_start|>assistant\n{begun}")
        scored += [False] * (len(ids) - len(scored))
    return ids, scored


@register
def turns(
    prompt: str = "Describe the image.",
    of: Literal["one", "questions", "captions"] = "one",
    most: int = 100,
    wording: str = "{question}",
) -> Op:
    """Makes `turns`, what is said about a photo, of an example's texts; of one that has `turns`, takes these.

    Args:
      prompt: what a user says for a caption.
      of: 'one' question with its most frequent (heaviest) answer, or one caption, drawn; 'questions' or 'captions', all
        of an example (task='all' of a data set) in random order, one turn each. Questions without an answer are left
        out.
      most: takes so many turns.
      wording: what a user says to ask a question, which stands for '{question}' in it.

    Raises (the op):
      BadSample: there is no such text.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "turns" in example:
            return {**example, "turns": example["turns"][:most]}
        if of == "questions":
            questions = [asked for asked in example.get("questions") or () if asked.get("answers")]
            said = [_answered(example, asked, wording, rng) for asked in questions]
        elif of == "one" and example.get("question"):
            said = [_answered(example, example, wording, rng)]
        else:
            captions = example.get("captions") or ()
            said = [{"user": prompt, "assistant": read_text(example, "caption", text)} for text in captions]
        if not said:
            raise BadSample(f"example {example.get('id', '?')} has no {'texts' if of == 'one' else of} to talk about.")
        order = rng.permutation(len(said))[: 1 if of == "one" else most]
        return {**example, "turns": [said[index] for index in order]}

    return op


@register
def ask(prompt: str = "Describe the image.", wording: str = "{question}") -> Op:
    """Makes `turns` of a question that is to be answered, or of the prompt where an example has none.

    Args:
      prompt: what is said instead of a question, unless the example has a `prompt` of its own.
      wording: what is said to ask a question, which stands for '{question}' in it.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        question = example.get("question")
        said = example.get("prompt", prompt)
        if question:
            said = wording.replace("{question}", read_text(example, "question", question))
        return {**example, "turns": [{"user": said}]}

    return op


def takes_prompt(spec: str) -> bool:
    """Returns whether a chain of ops asks in words, which the `prompt` of an example can replace."""
    return any(name in (ask.__name__, "affix") for name, _, _ in registry.parse(spec))


@register
def chat(
    length: int,
    image_tokens: int = 64,
    style: Literal["chat", "answer", "plain"] = "chat",
    system: str = "",
    *,
    tokenizer: Any,
) -> Op:
    """Writes `text`, `mask_input`, `mask_ar`, `segment` and `mask_loss` [length] of `turns`.

    'chat' is `<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>\\n ...`, with the photos' tokens
    before the first user's words and loss on what assistants say and on its end. A last turn without an answer is
    a prompt, padded on the left; an example may say what its answer has `begun` with. 'answer' is `Question: ...
    Answer:`, answer and eos of the first turn, as versions 0.1 and 0.2 have it: the photo is read in front of the text,
    or in IMAGE tokens there, where the tokenizer has these.
    'plain' is the same with the first user's words as they are.

    Args:
      image_tokens: of each tile: (image_size / patch_size / shuffle)².
      system: what is said first.

    Raises (the op):
      BadSample: no turn, no answer to learn from, or more tokens than `length`, of which none may be cut.
    """
    template = choose("style of chat:", style, {"chat": None, "answer": "Question: {user} Answer:", "plain": "{user}"})
    if style == "chat":
        image, whole = _id(tokenizer, IMAGE), tokenizer.id_of(WHOLE) is not None

    def chatted(example: Example) -> tuple[list[int], list[bool]]:
        photos = image_text(example.get("grids") or (), image_tokens, whole)
        # Words that spell the token of an image would take the place of one.
        said = [{role: text.replace(IMAGE, "") for role, text in turn.items()} for turn in example["turns"]]
        said[0] = {**said[0], "user": photos + said[0]["user"]}
        ids, scored = conversation(said, tokenizer, system, example.get("begun", ""))
        tiles = int(np.sum(example.get("image_mask", 0)))
        if ids.count(image) != tiles * image_tokens:
            raise BadSample(
                f"example {example.get('id', '?')}: {ids.count(image)} tokens of images for {tiles} tiles of "
                f"{image_tokens}. Give chat the model's image_tokens, and put tiles(...) before it."
            )
        return ids, scored

    def answered(example: Example) -> tuple[list[int], list[bool]]:
        turn, tiles = example["turns"][0], int(np.sum(example.get("image_mask", 0)))
        photo = IMAGE * (image_tokens * tiles) if tokenizer.id_of(IMAGE) is not None else ""
        prompt = photo + template.replace("{user}", turn["user"].replace(IMAGE, ""))
        if "assistant" not in turn:
            ids = tokenizer.encode(prompt)
            return ids, [False] * len(ids)
        ids = [*tokenizer.encode(prompt + turn["assistant"]), tokenizer.eos]
        first = len(tokenizer.encode(prompt))
        return ids, [column >= first for column in range(len(ids))]

    def op(example: Example, rng: np.random.Generator) -> Example:
        if not example.get("turns"):
            raise BadSample(f"example {example.get('id', '?')} has nothing to say: put turns() or ask() before chat.")
        ids, scored = (chatted if style == "chat" else answered)(example)
        if len(ids) > length:
            name = example.get("id", "?")
            raise BadSample(f"example {name} has {len(ids)} tokens, more than chat({length}).", "too many tokens")
        start = 0 if any(scored) else length - len(ids)
        text, mask = np.full(length, tokenizer.pad, np.int32), np.zeros(length, bool)
        loss = np.zeros(length, np.float32)
        text[start : start + len(ids)], mask[start : start + len(ids)] = ids, True
        loss[start : start + len(ids)] = scored
        return {**example, **prompts(text, mask), "mask_loss": loss * np.float32(example.get("weight", 1.0))}

    return op


def _answered(example: Example, asked: Example, wording: str, rng: np.random.Generator) -> Turn:
    if not asked.get("answers"):
        raise BadSample(f"example {example.get('id', '?')}: {asked.get('question')!r} has no answer to learn from.")
    words = wording.replace("{question}", read_text(example, "question", asked["question"]))
    return {"user": words, "assistant": pick(asked, "majority", rng)}


def _id(tokenizer: Any, token: str) -> int:
    if (number := tokenizer.id_of(token)) is None:
        raise UserError(
            f"The tokenizer {tokenizer.spec!r} has no {token}: take that of a nanoVLM from tools.convert nanovlm."
        )
    return number
