"""Multiple choice: which letter an answer means, and how many answers are right beside what knows no photo."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prismer_jax.scores.vqa import by_type

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A letter that stands alone at the beginning: "B", "(b)", "B." and "B: a cat", but not "A cat".
_FIRST = re.compile(r"""[\s("'\[*]*([A-Za-z])(?:[)"'\].,:;*]|\s*$|\s*\n)""")


def first_letter(text: str) -> str | None:
    """Returns the letter with which an answer begins, as a capital; None if it does not begin with one."""
    match = _FIRST.match(text)
    return match[1].upper() if match else None


def mentions(text: str, letter: str) -> bool:
    """Returns whether an answer counts as `letter` in huggingface/nanoVLM at tag v0.1 (models/utils.py).

    There it counts when it has the capital as a word, or within parentheses: "A cat" is right for A.
    """
    letter = letter.upper()
    return any(re.search(pattern, text) for pattern in (rf"\b{letter}\b", rf"\b{letter}[.,)]", rf"\(.*{letter}.*\)"))


def score_choices(
    records: Sequence[dict[str, Any]], constant: str, is_right: Callable[[str, dict[str, Any]], bool]
) -> Iterator[tuple[str, float]]:
    """Yields the accuracy in percent of the predictions and of their rivals, over all and by category.

    Args:
      records: one a question: `prediction`, `references` (the right letter), `letters` (all there are), `type` (the
        category), perhaps `blank`, what is said of a blank image. Each gets its `scores`: {'accuracy',
        'accuracy_blank', 'accuracy_most_frequent', 'accuracy_chance'}.
      constant: a letter for all questions.
      is_right: whether what was said of a record is right.
    """
    for record in records:
        said = {"": record["prediction"], "_blank": record.get("blank")}
        scores = {suffix: float(is_right(text, record)) for suffix, text in said.items() if text is not None}
        scores |= {
            "_most_frequent": float(constant in record["references"]),
            "_chance": 1 / len(record["letters"]),
        }
        record["scores"] = {f"accuracy{suffix}": 100 * score for suffix, score in scores.items()}
    for name in records[0]["scores"]:
        yield from by_type(name, [r["scores"][name] for r in records], ([r.get("type", "")] for r in records))
