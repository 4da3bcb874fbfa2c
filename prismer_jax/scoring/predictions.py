"""Files of predictions: the official result formats, what `prismer_jax.caption` writes, and the like.

Captions are [{"image_id", "caption"}], answers [{"question_id", "answer"}], classes [{"image_id", "class"}]. Instead of
an id there may be `image`, the photo's path, beside a `question` if there are several of it; instead of a text a list
of texts, the best first, under `captions`, `answers` or `choices`. The list may be one JSON object a line.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prismer_jax.datasets import formats
from prismer_jax.errors import UserError

Task = Literal["caption", "vqa", "choice"]

TEXTS: dict[Task, tuple[str, ...]] = {
    "caption": ("caption", "captions"),
    "vqa": ("answer", "answers"),
    "choice": ("class", "choice", "choices", "answer", "answers"),
}
OFFICIAL: dict[Task, tuple[str, str]] = {
    "caption": ("image_id", "caption"),
    "vqa": ("question_id", "answer"),
    "choice": ("image_id", "class"),
}
SHOULD = 'predictions are a list of {"image_id", "caption"}, {"question_id", "answer"} or what docs/evaluation.md says'


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An entry of a file of predictions."""

    entry: Mapping[str, Any]

    def text(self, task: Task) -> str | None:
        """Returns what is predicted, a number as a text; None where there is no text."""
        value = next((self.entry[key] for key in TEXTS[task] if key in self.entry), None)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            return formats.id_text(value)
        return value if isinstance(value, str) else None

    def id(self, key: str) -> str | None:
        """Returns an id as the text by which ids are compared: 5 and "5" are one, "05" is another."""
        value = self.entry.get(key)
        is_id = isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())
        return formats.id_text(value) if is_id and not isinstance(value, bool) else None

    def __str__(self) -> str:
        shown = {key: self.entry[key] for key in ("question_id", "image_id", "image", "question") if key in self.entry}
        text = json.dumps(shown or dict(self.entry), ensure_ascii=False)
        return text if len(text) <= 120 else f"{text[:117]}..."


def read_predictions(path: pathlib.Path) -> list[Prediction]:
    """Reads a file of predictions; what an entry lacks is seen when it is scored.

    Raises:
      UserError: no such file, it is not JSON, not a list of objects, or empty, or an entry could not be stored.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    try:
        content = json.loads(text)
        content = [content] if isinstance(content, dict) and _is_entry(content) else content
    except (ValueError, RecursionError):
        content = [_line(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"{path}: is not a list of objects: {SHOULD}.")
    if not content:
        raise UserError(f"{path}: has no predictions.")
    for number, entry in enumerate(content, 1):
        try:
            encoded(entry)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: entry {number} cannot be stored as UTF-8 ({error}). Mend it.") from None
    return [Prediction(entry) for entry in content]


def encoded(value: Any) -> bytes:
    """Returns JSON in UTF-8; raises UnicodeEncodeError for half a character, which JSON can hold and UTF-8 cannot."""
    return json.dumps(value, ensure_ascii=False).encode()


def task_of(entries: Sequence[Prediction], path: pathlib.Path) -> Task:
    """Returns which task the keys of predictions are of.

    Raises:
      UserError: of none.
    """
    keys = {key for entry in entries for key in entry.entry}
    for task, names in TEXTS.items():
        if keys.intersection(names):
            return task
    raise UserError(f"{path}: has no texts but {', '.join(sorted(keys)) or 'nothing'}: {SHOULD}.")


def _is_entry(content: Mapping[str, Any]) -> bool:
    return any(key in content for names in TEXTS.values() for key in names)


def _line(line: str, path: pathlib.Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON ({error}): {SHOULD}.") from None
