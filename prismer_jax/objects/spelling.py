"""Boxes and masks as words, `<loc0397><loc0382><loc0958><loc0666><seg059>...<seg078> cat`, and back.

An object is four words of its box, y1 x1 y2 x2 in 1023rds of the photo's height and width, sixteen of its mask where it
has one (see `codec`), and its name; ` ; ` joins several.

Source: google-research/big_vision, pp/proj/paligemma/segmentation.py and evaluators/proj/paligemma/transfers/
segmentation.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

LAST = 1023  # of <loc0000> ... <loc1023>
CODES = 128  # <seg000> ... <seg127>
TOKENS = 16  # of a mask
JOINED = " ; "
Box = tuple[float, float, float, float]  # y1, x1, y2, x2 as fractions of height and width

_PLACE = r"<(?:loc\d{4}|seg\d{3})>"
_OBJECT = re.compile(rf"((?:{_PLACE}\s*)+)((?:(?!{_PLACE})[^;])*)")
_WHOLE = re.compile(rf"(?:<loc\d{{4}}>){{4}}(?:<seg\d{{3}}>){{{TOKENS}}}")  # with which a single object begins
_NUMBER = re.compile(r"<(loc|seg)(\d+)>")


@dataclasses.dataclass(frozen=True)
class Found:
    """An object that a text speaks of.

    Attributes:
      name: what it is called; may be empty.
      box: where it is.
      codes: of its mask, 16 numbers below 128; empty where only a box was said.
    """

    name: str
    box: Box
    codes: tuple[int, ...] = ()


def bins(boxes: np.ndarray) -> np.ndarray:
    """Returns the numbers of the words of boxes [..., 4]: rounded, a half to the even one."""
    scaled = np.asarray(boxes, np.float32) * np.float32(LAST)
    return np.clip(np.rint(scaled), 0, LAST).astype(np.int32)


def spell(box: Sequence[float], name: str = "", codes: Iterable[int] = ()) -> str:
    """Returns the words of one object."""
    places = "".join(f"<loc{number:04d}>" for number in bins(np.asarray(box)))
    return f"{places}{''.join(f'<seg{code:03d}>' for code in codes)} {name}".rstrip()


def parse(text: str, scale: int = LAST + 1) -> tuple[list[Found], int]:
    """Returns the objects of a text in their order, and how many more are broken.

    Broken is what has another number of words than 4 or 4 + 16, has them in another order, a number that is too large,
    or a box without a height or width.

    Args:
      scale: what the numbers of boxes are divided by: 1024 as in Hugging Face's announcement of PaliGemma, or 1023 as
        in big_vision.
    """
    objects, broken = [], 0
    for words, name in _OBJECT.findall(text):
        if (one := _read(words, scale)) is None:
            broken += 1
        else:
            objects.append(dataclasses.replace(one, name=name.strip()))
    return objects, broken


def parse_mask(text: str) -> Found | None:
    """Returns the box, in 1023rds, and codes with which a text begins; None if it begins otherwise. What follows is
    not looked at, as in big_vision's evaluator."""
    match = _WHOLE.match(text)
    return None if match is None else _read(match[0], LAST)


def _read(words: str, scale: int) -> Found | None:
    kinds, numbers = zip(*_NUMBER.findall(words), strict=True)
    values = [int(number) for number in numbers]
    if kinds not in (("loc",) * 4, ("loc",) * 4 + ("seg",) * TOKENS):
        return None
    y1, x1, y2, x2 = values[:4]
    if max(values[:4]) > LAST or max(values[4:], default=0) >= CODES or y2 <= y1 or x2 <= x1:
        return None
    return Found("", (y1 / scale, x1 / scale, y2 / scale, x2 / scale), tuple(values[4:]))
