"""What a list says of a photo, and how its values are read: texts, answers and ids in the forms of all lists."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prismer_jax.errors import BadSample
from prismer_jax.files.dropped import Dropped

Entry = Mapping[str, Any]

ANSWERS = 10  # an answer given once counts as given by all ten annotators of VQAv2, whose accuracy needs three
TEXTS = ("domain", "class_name")  # of a photo: the entries that are passed on as they are
CAPTION_KEYS = ("captions", "caption", "text", "texts", "sentences", "sentence", "description", "comment")
ANSWER_KEYS = ("answers", "answer", "direct_answers", "multiple_choice_answer")
INNER_KEYS = ("caption", "text", "raw", "answer", "raw_answer")  # where a text is an object of its own
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_(\d{12})\.\w+$")


@dataclasses.dataclass(slots=True)
class Row:
    """What one entry of a list says of a photo.

    Attributes:
      image: the photo's path as the list has it.
      dataset: the data set that the entry says it is of.
      id: of the photo.
      captions: of the photo; one that is no text is here as the list has it.
      question: one question about it: `question`, `question_type`, `answers`, and if known `question_id` (a number or a
        text, as the list has it), `answer_type`, `weight`, `answer_weights`.
      texts: of TEXTS.
    """

    image: str
    dataset: str | None = None
    id: str | None = None
    captions: list[Any] = dataclasses.field(default_factory=list)
    question: dict[str, Any] | None = None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id is None and "COCO_" in self.image and (match := _COCO_NAME.search(self.image)):
            self.id = str(int(match[1]))  # so that results are in official terms


@dataclasses.dataclass
class LeftOut:
    """What of a list is no row, counted by reason.

    Attributes:
      entries: entries, questions and annotations that cannot be used.
      texts: texts under keys that are not read; their photos are rows.
    """

    entries: Dropped = dataclasses.field(default_factory=Dropped)
    texts: Dropped = dataclasses.field(default_factory=Dropped)


def each(
    entries: Iterable[Any], read: Callable[[Any], Iterable[Row]], dropped: Dropped, what: str = "entry"
) -> Iterator[Row]:
    """Yields the rows that `read` makes of each entry; counts the entries of which it can make none."""
    for number, entry in enumerate(entries, 1):
        try:
            rows = read(entry)
        except BadSample as error:
            dropped.add(error.reason, f"{what} {number}: {error}")
            continue
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            if not isinstance(entry, Mapping | tuple):
                problem = f"is {shown(entry)} instead of an object with keys"
            dropped.add(f"unreadable {what}", f"{what} {number}: {problem}")
            continue
        yield from rows


def captions(value: Any) -> list[Any]:
    """Returns the captions in a value of a list: a text, a list of texts, or of objects that hold one."""
    if isinstance(value, str) or not isinstance(value, list | Mapping):
        return [value]
    return [_inner(text) for text in (value if isinstance(value, list) else [value])]


def captions_of(entry: Entry, keys: Iterable[str] = CAPTION_KEYS) -> list[Any] | None:
    """Returns the captions under the first of the keys that holds any; None if an entry has none of the keys."""
    values = None
    for key in keys:
        if key in entry:
            values = captions(entry[key])
            if values and not all(map(is_empty, values)):
                break
    return values


def answers(value: Any) -> list[str]:
    """Returns the answers in a value of a list: texts, numbers, or objects that hold one; null is no answer.

    Raises:
      BadSample: it is none of these.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for one in value for text in answers(one)]
    if isinstance(inner := _inner(value), str):
        return [inner]
    value = inner
    if is_empty(value):
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int | float):
        return [id_text(value)]  # 2.0 is the number 2 of a column with gaps
    raise BadSample(f"an answer is {shown(value)} instead of a text", "answer that is not a text")


def repeated(texts: list[str]) -> list[str]:
    """Returns answers as ten annotators would have given them, where there is one."""
    return texts * ANSWERS if len(texts) == 1 else texts


def chosen(choices: Any, number: int) -> Any:
    """Returns a choice by its number, the first being 0.

    Raises:
      BadSample: there is no such choice.
    """
    if not isinstance(choices, list):
        raise BadSample(f"its choices are {shown(choices)} instead of a list", "choices that are no list")
    if not 0 <= number < len(choices):
        raise BadSample(f"its answer is choice {number} of {len(choices)}", "answer that is no choice")
    return choices[number]


def answer_among(choices: Any, answer: Any) -> Any:
    """Returns what an answer beside choices says: a number is that of a choice, as in ScienceQA.

    Where choices are numbers, too, it may be one of them; those of ScienceQA and A-OKVQA are texts.

    Raises:
      BadSample: there is no such choice, or two may be meant.
    """
    number = whole(answer)
    if not choices or number is None:
        return answer
    if not isinstance(choices, list) or not any(type(one) in (int, float) and one == number for one in choices):
        return chosen(choices, number)
    if 0 <= number < len(choices) and choices[number] != number:
        raise BadSample(
            f"its answer {number} may be one of the choices {shown(choices)} or the number of one: write it as a text",
            "answer of two meanings",
        )
    return number


def question(value: Any) -> str:
    """Returns the text of a question.

    Raises:
      BadSample: it is none.
    """
    if isinstance(value, str):
        return value
    reason = "empty question" if is_empty(value) else "question that is not a text"
    raise BadSample(f"a question is {shown(value)} instead of a text", reason)


def number_or_text(value: Any) -> int | str | None:
    """Returns an id as the list has it, so that results have it in the same form; None where it is null.

    Raises:
      BadSample: it is neither a number nor a text.
    """
    if isinstance(value, str):
        return value
    if (number := whole(value)) is not None:
        return number
    if is_empty(value):
        return None
    raise BadSample(f"an id is {shown(value)} instead of a number or a text", "unreadable id")


def whole(value: Any) -> int | None:
    """Returns a whole number, also one of a column that gaps have turned into floats; None of anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def id_text(value: Any) -> str:
    """Returns the text by which two ids are compared: 5 and "5" are one, "05" is another."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def texts(entry: Entry) -> dict[str, str]:
    """Returns the entries of TEXTS that say something.

    Raises:
      BadSample: one is no text.
    """
    values = {key: entry[key] for key in TEXTS if key in entry and not is_empty(entry[key])}
    for key, value in values.items():
        if not isinstance(value, str):
            raise BadSample(f"a {key} is {shown(value)} instead of a text", f"{key} that is not a text")
    return values


def is_empty(value: Any) -> bool:
    """Returns whether a value is null, NaN (as tables write null) or a text of nothing but spaces."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or value != value


def is_nothing(value: Any) -> bool:
    """Returns whether a value is empty, or a list or an object with nothing in it."""
    return not value if isinstance(value, list | Mapping) else is_empty(value)


def shown(value: Any) -> str:
    """Returns a value as an error shows it, in a few characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping):
        return next((value[key] for key in INNER_KEYS if key in value), value)
    return value
