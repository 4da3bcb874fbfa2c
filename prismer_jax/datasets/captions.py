"""The captions of a photo as people write them: in files beside it, or as a value in JSON or in a table.

Beside KEY.jpg lie KEY.txt, a caption a line, or KEY.json with the captions under one of `KEYS`, or both, as img2dataset
writes them (github.com/rom1504/img2dataset, writer.py). Its .txt is Python's str() of the caption: "['a dog', 'a pet']"
of a list, "nan" of an empty cell of a table, two lines of a caption with a line break in it. Where a .txt may be one of
these, the .json beside it says what was meant; without it the text of a list is still one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from prismer_jax.errors import BadSample
from prismer_jax.files import regular
from prismer_jax.registry import literal

SIDES = (".txt", ".json")  # of a photo, in the order in which they are asked for captions
KEYS = ("captions", "caption", "text")  # of a JSON object: the first one with a caption in it

# Why a photo has fewer captions than it seems to have.
EMPTY = "empty side file"
NO_KEY = "side file without a caption"
NOT_TEXT = "caption that is not a text"

_ITEM = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[-+.\w]+""")  # of a list as Python prints it


class Captions(NamedTuple):
    """What was read.

    Attributes:
      texts: the captions.
      lost: the reason why there are none, or why one is left out; None where nothing is lost.
    """

    texts: list[str]
    lost: str | None = None


def read(path: str) -> Captions:
    """Returns the captions in a side file, and in the one of the other kind where that one says more.

    Raises:
      BadSample: as `beside`, or the file cannot be read.
    """
    stem, end = os.path.splitext(path)

    def side(kind: str) -> bytes | None:
        if kind == end.lower():
            return regular.read(path)
        other = stem + kind  # a .txt that is there would have been given
        return regular.read(other) if kind == ".json" and os.path.exists(other) else None

    try:
        return beside(side, stem)
    except OSError as error:
        raise BadSample(f"{path}: {error.strerror}.", "unreadable file") from None


def beside(side: Callable[[str], bytes | None], where: str) -> Captions:
    """Returns the captions in the side files of a photo.

    Args:
      side: returns the bytes of the side file with an ending of SIDES, None if there is none.
      where: the path of the side files without their endings, for messages.

    Raises:
      BadSample: the bytes that are needed are not UTF-8, or not JSON where they should be.
    """
    text = None if (data := side(".txt")) is None else _decoded(data, f"{where}.txt")
    lines = [line for line in map(str.strip, (text or "").split("\n")) if line]
    if len(lines) == 1 and lines[0] != "nan" and lines[0][0] != "[":
        return Captions(lines)
    data = side(".json")
    if lines:
        return (None if data is None else _meant(data, text)) or _printed(text, f"{where}.txt") or Captions(lines)
    captions = Captions([]) if data is None else _in_json(data, f"{where}.json")
    return Captions([], EMPTY) if text is not None and not captions.texts else captions


def listed(text: str) -> list[str] | None:
    """Returns the texts of a list that somebody wrote as one text; None of any other text.

    The list is JSON's, or as Python prints it, or NumPy, which puts no commas. Numbers in it are texts, too, and null
    is none.
    """
    if not (text.startswith("[") and text.endswith("]")):
        return None
    values: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(text)
    if values is None and not _ITEM.sub("", text[1:-1]).strip(", \n"):
        with contextlib.suppress(ValueError, SyntaxError):
            values = [None if item == "nan" else literal(item) for item in _ITEM.findall(text[1:-1])]
    if values is None or not all(value is None or type(value) in (str, int, float) for value in values):
        return None
    said = (value for value in values if value is not None and value == value)
    return [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in said]


def texts(value: Any) -> Captions:
    """Returns the captions that a value means: a text is one, a list several, null and NaN are none."""
    try:
        return _texts(value)
    except RecursionError:  # of hundreds of lists in each other
        return Captions([], NOT_TEXT)


def _texts(value: Any) -> Captions:
    if isinstance(value, list | tuple):
        parts = [_texts(item) for item in value]
        lost = next((part.lost for part in parts if part.lost), None)
        return Captions([text for part in parts for text in part.texts], lost)
    if isinstance(value, str):
        return Captions([value.strip()] if value.strip() else [])
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Captions([])
    return Captions([], NOT_TEXT)


def _meant(data: bytes, text: str) -> Captions | None:
    """Returns the captions of a .json if the text of the .txt is Python's str() of them, and None otherwise."""
    with contextlib.suppress(BadSample, RecursionError):
        content = _content(data, "")
        if isinstance(content, dict) and "caption" in content and str(content["caption"]).strip() == text.strip():
            return _unicode(texts(content["caption"]), "")
    return None


def _printed(text: str, where: str) -> Captions | None:
    """Returns the captions of a .txt that is the text of a list, and None otherwise."""
    values = listed(text.strip())
    return None if values is None else Captions(_unicode(texts(values), where).texts, None if values else EMPTY)


def _in_json(data: bytes, where: str) -> Captions:
    content = _content(data, where)
    if content is None:
        return Captions([], EMPTY)
    if not isinstance(content, dict):
        return _unicode(texts(content), where)
    values = [texts(content[key]) for key in KEYS if key in content]
    captions = next((value for value in values if value.texts), values[0] if values else Captions([], NO_KEY))
    return _unicode(captions, where)


def _content(data: bytes, where: str) -> Any:
    """Returns what is in a .json, None for an empty one."""
    text = _decoded(data, where)
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{where}: not JSON ({error}).", "unreadable side file") from None


def _unicode(captions: Captions, where: str) -> Captions:
    """Returns the captions; raises BadSample for half a character, which JSON can hold."""
    try:
        "".join(captions.texts).encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"{where}: not UTF-8 ({error}).", "caption that is not UTF-8") from None
    return captions


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeError as error:
        raise BadSample(f"{where}: not UTF-8 ({error}).", "caption that is not UTF-8") from None
