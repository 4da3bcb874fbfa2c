"""Conversations about a photo, as LLaVA and chat models have them, read as questions with answers, or captions.

- LLaVA's: {"conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}]}
- of chat models: {"messages": [{"role": "user", "content": "..." or [{"type": "text", "text": "..."}]}, ...]}

A reply to nothing but the photo, or to the wish for a description ("Describe the image concisely."), is a caption;
any other is the answer to a question. What was said before is no part of a question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prismer_jax.datasets.formats.row import Entry, shown
from prismer_jax.errors import BadSample

KEYS = ("conversations", "messages", "conversation")
ASKING = ("human", "user")
ANSWERING = ("gpt", "assistant", "model", "bot")
_PLACEHOLDER = re.compile(r"<(?:image|img|image_placeholder|ImageHere)>", re.IGNORECASE)
# LLaVA's pretraining asks for captions in eleven ways, with these nouns and verbs and without a question mark
# (haotian-liu/LLaVA, "brief image description" in the appendix of arXiv:2304.08485).
_DESCRIBE = re.compile(
    r"\b(?:describ\w*|descriptions?|caption\w*|summar\w+|explanation|interpretation|account|representation)\b",
    re.IGNORECASE,
)


def exchanges(entry: Entry) -> list[tuple[str, str]]:
    """Returns (prompt, reply) of each reply in an entry's conversations; the prompt of a caption is empty.

    Raises:
      BadSample: the conversation is no list of turns.
    """
    said: list[tuple[str, str]] = []
    for key in KEYS:
        if key in entry:  # one conversation may stand there in two forms
            said += [exchange for exchange in _exchanges(entry[key]) if exchange not in said]
    return said


def prompt(text: str) -> str:
    """Returns what a person says, without what stands for the photo."""
    return " ".join(_PLACEHOLDER.sub(" ", text).split())


def _exchanges(turns: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadSample(f"its conversation is {shown(turns)} instead of a list of turns", "unreadable conversation")
    asked = None
    for turn in turns:
        role, text = str(turn.get("from", turn.get("role", ""))), _text(turn.get("value", turn.get("content")))
        if role in ASKING:
            asked = prompt(text)
        elif role in ANSWERING and asked is not None:
            caption = "?" not in asked and _DESCRIBE.search(asked)
            yield "" if caption else asked, text.strip()
            asked = None


def _text(content: Any) -> str:
    if isinstance(content, list):  # parts, of which some are photos
        content = " ".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise BadSample(f"a turn says {shown(content)} instead of a text", "unreadable conversation")
    return content
