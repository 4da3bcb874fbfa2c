"""Multiple-choice questions about photos, as JSON lines or one JSON list: MMStar, ScienceQA, MMMU and the like.

An entry has `question`; the options as `choices` (or `options`), a list of texts, or in the question itself ("A: a cat,
B: a dog"); `answer`, a letter or the index of an option; `category` (or `subject`), if it has one; `image`, a file or
several, or none; and `id` (or `index`).
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax.datasets.formats import row
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.scores.choice import LETTERS

KEYS = {  # the first that an entry has
    "choices": ("choices", "options"),
    "category": ("category", "subject", "subfield", "topic"),
    "id": ("id", "question_id", "index"),
    "image": ("image", "images"),
}
_OPTION = re.compile(r"(?<![A-Za-z0-9])\(?([A-Z])[:.)](?=\s)")  # "A: a cat", "B. a dog", "(C) none"


def load(
    path: storage.PathLike,
    *,
    images: storage.PathLike | None = None,
    letters: str = "",
    limit: int | None = None,
    max_bad: float = 0.01,
) -> Source:
    """Returns a source of questions; photos are opened when an example is read.

    Args:
      path: the list, .jsonl or .json.
      images: the folder that its paths are relative to; by default the list's own.
      letters: of the options of a question that does not list them; '' leaves such questions out.
      limit: takes only so many questions, the first ones.
      max_bad: the fraction of entries that may be unusable; they are counted by reason and left out, with a warning.

    An example has `id`, `image` (a path, a list of paths, or None), `question` with its options in the text, `letters`
      of these, `choices` (texts) where the entry lists them, `answers` (the right letter alone) and `question_type`
      (the category).

    Raises:
      UserError: there is no such list, or more of its entries than max_bad cannot be used: names the first.
    """
    path = storage.on_disk(path)
    folder, dropped, examples = storage.on_disk(images) if images else path.parent, Dropped(), []
    entries = _entries(path)
    for number, entry in enumerate(entries):
        try:
            examples.append(_example(entry, number, folder, letters, f"{path}: question {number + 1}"))
        except BadSample as error:
            dropped.add_error(error)
    dropped.warn(path)
    if not examples or dropped.total > max(1, max_bad * len(entries)):
        first = next(iter(dropped.to_json().values()))["first"][0] if dropped else "it is empty."
        raise UserError(f"{path}: {dropped.total} of {len(entries)} questions cannot be used: {first}")
    return Source(examples[:limit], dropped)


class Source:
    """Multiple-choice questions: `len(source)`, `source[i]`.

    Attributes:
      dropped: what was left out.
    """

    def __init__(self, examples: Sequence[dict[str, Any]], dropped: Dropped) -> None:
        self._examples, self.dropped = examples, dropped

    def __len__(self) -> int:
        return len(self._examples)

    def name(self, index: int) -> str:
        return str(self._examples[index]["id"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._examples[index])


def _entries(path: pathlib.Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give a list of questions as JSON lines.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: neither JSON lines nor a JSON list ({error}).") from None


def _example(entry: Any, number: int, folder: pathlib.Path, letters: str, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question"), str) or not entry["question"].strip():
        raise BadSample(f"{where} has no text `question`.", "no question")
    question, texts = entry["question"].strip(), _first(entry, "choices")
    while isinstance(texts, list) and texts and row.is_empty(texts[-1]):  # a table has cells for further ones
        texts = texts[:-1]
    if not texts:
        letters = _listed(question) or letters
    elif isinstance(texts, list) and 2 <= len(texts) <= len(LETTERS) and all(map(_is_option, texts)):
        letters = LETTERS[: len(texts)]
        question += "\n" + "\n".join(f"{i}. {text}" for i, text in zip(letters, texts, strict=True))
    else:
        raise BadSample(f"{where} has {texts!r} as choices, which is no list of 2 to 26 texts.", "no choices")
    if not letters:
        raise BadSample(f"{where} has no `choices`, and its text lists none as 'A: ..., B: ...'.", "no choices")
    photos = _first(entry, "image") or []
    names = [photos] if isinstance(photos, str) else photos
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadSample(f"{where} has {photos!r} as its photo, which is no path and no list of them.", "no photo")
    paths = [str(folder / name) for name in names]
    if lost := [name for name in paths if not os.path.isfile(name)]:
        raise BadSample(f"{where} is about {lost[0]}, which is not there.", "missing photo")
    id = str(number if (own := _first(entry, "id")) is None else own)
    return {
        "id": id,
        "photo": paths[0] if paths else id,
        "image": None if not paths else paths[0] if len(paths) == 1 else paths,
        "question": question,
        "letters": letters,
        **({"choices": [str(text) for text in texts]} if texts else {}),
        "answers": [_right(entry.get("answer"), letters, texts, where)],
        "question_type": str(_first(entry, "category") or ""),
    }


def _first(entry: Mapping[str, Any], key: str) -> Any:
    return next((entry[name] for name in KEYS[key] if not row.is_empty(entry.get(name))), None)


def _is_option(value: Any) -> bool:
    return isinstance(value, str | int | float) and not row.is_empty(value)


def _listed(question: str) -> str:
    """Returns the letters of the options that a text lists, at least A and B, or ''."""
    there = set(_OPTION.findall(question))
    number = next((i for i, letter in enumerate(LETTERS) if letter not in there), len(LETTERS))
    return LETTERS[:number] if number > 1 else ""


def _right(answer: Any, letters: str, texts: list[Any] | None, where: str) -> str:
    """Returns the letter of an answer, which is a letter or an index."""
    number = row.whole(answer)
    if number is not None and 0 <= number < len(letters):
        try:
            row.answer_among(texts, number)
        except BadSample as error:
            raise BadSample(f"{where}: {error}.", error.reason) from None
        return letters[number]
    letter = answer.strip().strip("().").upper() if isinstance(answer, str) else ""
    if len(letter) != 1 or letter not in letters:
        raise BadSample(
            f"{where} has the answer {answer!r}, which is none of its choices {letters}.",
            "answer outside of the choices",
        )
    return letter
