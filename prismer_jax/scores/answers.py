"""Scores of short answers other than VQA's: each with its source, all in percent beside those of their rivals.

Where google-research/big_vision (at 0127fb6, evaluators/proj/paligemma/transfers/) scores in a way of its own, a
PaliGemma's published numbers are of that way, and so are these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prismer_jax.scores.choice import LETTERS
from prismer_jax.scores.vqa import NUMBER_WORDS, accuracy, by_type

Record = dict[str, Any]  # `prediction`, `references`, `type` ... of a question; see evaluators/answers.py
ANLS_THRESHOLD = 0.5
TOLERANCE = 0.05  # of a number
AGREEING = 3  # annotators
_TEENS = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
COUNTS = NUMBER_WORDS | {word: str(number) for number, word in enumerate([*_TEENS, "twenty"], 11)}
_LETTER = re.compile(r"the answer is ([a-z])\.")
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.DOTALL)


def edit_distance(a: str, b: str) -> int:
    """Returns how many letters must be put in, left out or changed to make one text of the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def anls(said: str, references: Sequence[str]) -> float:
    """Returns the normalised similarity to the nearest reference, 0 where half of the letters or more differ.

    Source: Biten et al., arXiv 1907.00490, equation 1.
    """

    def similarity(reference: str) -> float:
        if not reference:
            return float(not said)
        distance = edit_distance(said, reference) / max(len(said), len(reference))
        return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0

    return max(map(similarity, references))


def relaxed(said: str, references: Sequence[str]) -> float:
    """Returns 1 for the reference, or for a number within 5 % of one; '5%' is 0.05.

    Source: Masry et al. (ChartQA), arXiv 2203.10244, section 5.1. A reference of 0 must be met as it is written.
    """

    def right(reference: str) -> bool:
        ours, theirs = _number(said), _number(reference)
        if ours is None or not theirs:
            return said == reference
        return abs(ours - theirs) / abs(theirs) <= TOLERANCE

    return float(any(map(right, references)))


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def count(said: str, references: Sequence[str]) -> float:
    """Returns 1 for the right number, in digits or in a word up to twenty."""
    return float(COUNTS.get(said.lower(), said) in [COUNTS.get(text.lower(), text) for text in references])


def letter(said: str, record: Record) -> float:
    """Returns 1 for 'The answer is B.' where choice B is the reference, as ScienceQA's authors read it.

    Source: lupantech/ScienceQA, models/run_gpt3.py. A text that is a choice is taken as one, too.
    """
    match, choices = _LETTER.match(said.lower()), record.get("choices") or ()
    number = LETTERS.index(match[1].upper()) if match else len(choices)
    return float((choices[number] if number < len(choices) else said) in record["references"])


def option(said: str, record: Record) -> float:
    """Returns 1 for the right one of the options that a question lists as '(a) open (b) closed', or for its text.

    Source: Tong et al. (MMVP), arXiv 2401.06209; their answers are '(a)' or '(b)'.
    """

    def plain(text: str) -> str:
        return text.strip(" ().").lower()

    texts = {plain(text): name for name, text in _OPTION.findall((record.get("question") or "").lower())}
    return float(texts.get(plain(said), plain(said)) in [plain(text) for text in record["references"]])


def yes_no(records: Sequence[Record], said: Sequence[str]) -> dict[str, float]:
    """Returns precision, recall and F1 of 'yes', how often it is said, and how often 'yes' or 'no' is.

    Source: Li et al. (POPE), arXiv 2305.10355; what is neither counts as no 'yes', and is wrong.
    """
    answers = list(map(_plain, said))
    truths = ["yes" in map(_plain, record["references"]) for record in records]
    yes, hits = answers.count("yes"), sum(a == "yes" and truth for a, truth in zip(answers, truths, strict=True))
    precision, recall = hits / yes if yes else 0.0, hits / sum(truths) if any(truths) else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    valid = yes + answers.count("no")
    return dict(precision=precision, recall=recall, f1=f1, yes=yes / len(said), valid=valid / len(said))


def pairs(records: Sequence[Record], said: Sequence[str]) -> dict[str, float]:
    """Returns the share of pairs of questions, two that follow each other in the list, whose answers are both right."""
    right: dict[int, list[float]] = {}
    for record, text in zip(records, said, strict=True):
        right.setdefault(record["index"] // 2, []).append(option(text, record))
    whole = [all(pair) for pair in right.values() if len(pair) == 2]
    return {"pairs": sum(whole) / len(whole)} if whole else {}


def parsed(records: Sequence[Record], said: Sequence[str]) -> dict[str, float]:
    """Returns the share of answers that name a letter as `letter` wants it."""
    return {"parsed": sum(bool(_LETTER.match(text.lower())) for text in said) / len(said)}


class Score(NamedTuple):
    """A way to score.

    Attributes:
      name: of the metric.
      one: (said, record) -> between 0 and 1, of an answer.
      all: (records, said) -> further metrics between 0 and 1, of a set.
      kinds: record -> the kinds beside `type` under which its score is averaged, too.
    """

    name: str
    one: Callable[[str, Record], float]
    all: Callable[[Sequence[Record], Sequence[str]], dict[str, float]] = lambda records, said: {}
    kinds: Callable[[Record], Sequence[str]] = lambda record: ()


def _of_texts(score: Callable[[str, Sequence[str]], float]) -> Callable[[str, Record], float]:
    return lambda said, record: score(said, record["references"])


def _agreed(said: str, record: Record) -> float:
    return min(1.0, record["references"].count(said) / AGREEING)


def _exact(said: str, record: Record) -> float:
    return float(said in record["references"])


def _in_any_case(said: str, record: Record) -> float:
    return float(_plain(said) in map(_plain, record["references"]))


def _plain(text: str) -> str:
    return text.strip().lower()


SCORES: Mapping[str, Score] = {
    "agreed": Score("accuracy", _agreed),  # OK-VQA, A-OKVQA, VizWiz in big_vision: as three annotators say it
    "anls": Score("anls", _of_texts(anls)),  # DocVQA, InfographicVQA, ST-VQA
    "count": Score("accuracy", _of_texts(count), kinds=lambda record: [f"count_{record['references'][0]}"]),  # TallyQA
    "exact": Score("accuracy", _exact),  # GQA, OCR-VQA, AI2D ...
    "letter": Score("accuracy", letter, parsed),  # ScienceQA
    "pairs": Score("accuracy", option, pairs),  # MMVP
    "relaxed": Score("relaxed_accuracy", _of_texts(relaxed)),  # ChartQA
    "vqa": Score("accuracy", _of_texts(accuracy)),  # VQAv2, TextVQA, VizWiz's own
    "yes_no": Score("accuracy", _in_any_case, yes_no),  # POPE
}


def score_records(records: Sequence[Record], score: Score, constant: str) -> Iterator[tuple[str, float]]:
    """Yields a score in percent of the predictions and of their rivals, over all and by type.

    Args:
      records: one a question: `index`, `prediction`, `references`, perhaps `blank`, what is said of a blank image, and
        `type`. Each gets its `scores`.
      constant: an answer to all questions.
    """
    texts = {"": [record["prediction"] for record in records], "_most_frequent": [constant] * len(records)}
    if all(record.get("blank") is not None for record in records):
        texts["_blank"] = [record["blank"] for record in records]
    kinds = [[record.get("type", ""), *score.kinds(record)] for record in records]
    for record in records:
        record["scores"] = {}
    for suffix, said in texts.items():
        name = f"{score.name}{suffix}"
        for record, text in zip(records, said, strict=True):
            record["scores"][name] = 100 * score.one(text, record)
        yield from by_type(name, [record["scores"][name] for record in records], kinds)
        for kind in ["", *sorted({record.get("type", "") for record in records} - {""})]:
            chosen = [number for number, record in enumerate(records) if kind in ("", record.get("type", ""))]
            metrics = score.all([records[number] for number in chosen], [said[number] for number in chosen])
            for key, value in metrics.items():
                yield f"{key}{suffix}{'/' if kind else ''}{kind}", 100 * value
