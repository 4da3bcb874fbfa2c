"""The official accuracy of visual question answering, with the answer normalisation of the public evaluation code.

The rules follow the evaluation script of the VQA data sets (github.com/GT-Vision-Lab/VQA), quirks included, so that a
number from here can stand beside a published one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prismer_jax.errors import UserError

ANNOTATORS = 10
ENOUGH = 3  # an answer that three annotators gave is fully right

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER_WORDS = {word: str(i) for i, word in enumerate(_NUMBERS)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the script passes a flag where `re.sub` expects a count: it removes this many periods at most
COMMA_IN_NUMBER = re.compile(r"\d,\d")

# Each form is restored where exactly one of its apostrophes is missing: dont, couldnt've, couldn'tve.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form for form in _CONTRACTIONS.split() for i, sign in enumerate(form) if sign == "'"
} | {"somebody'd": "somebodyd"}  # the script's table has this one the wrong way round


def normalize(answer: str) -> str:
    """Normalizes punctuation, case, number words, articles and contractions as the official script does."""
    text = answer
    for sign in PUNCTUATION:
        # A sign that is beside a space anywhere (or any 1,000) vanishes everywhere; else it becomes a space.
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside_space or COMMA_IN_NUMBER.search(answer) else " ")
    text = PERIOD.sub("", text, count=MAX_PERIODS)
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns accuracy in [0, 1]: the mean over annotators, each left out once, of min(1, others who agree / 3).

    Like the official script it normalises both sides only where the annotators disagree. Fewer than ten answers count
    as if ten annotators had given them in the same proportion: one answer, matched, is right.

    Raises:
      UserError: there is no answer to compare with.
    """
    if not answers:
        raise UserError("A question without answers has no accuracy: score a split whose annotations are public.")
    prediction, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = map(normalize, (prediction, *answers))
    annotators = max(ANNOTATORS, len(answers))
    agree = answers.count(prediction) * annotators / len(answers)
    left_out_agrees, left_out_differs = min(1.0, (agree - 1) / ENOUGH), min(1.0, agree / ENOUGH)
    return (agree * left_out_agrees + (annotators - agree) * left_out_differs) / annotators


def by_type(name: str, scores: Sequence[float], types: Iterable[Iterable[str]]) -> Iterator[tuple[str, float]]:
    """Yields (name, mean of the scores), then ('name/type', mean) of each type; '' is no type.

    Args:
      name: of the metric.
      scores: one a question.
      types: those of each question.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for score, kinds in zip(scores, types, strict=True):
        for kind in set(kinds) - {""}:
            groups[kind].append(score)
    yield name, sum(scores) / len(scores)
    for kind in sorted(groups):
        yield f"{name}/{kind}", sum(groups[kind]) / len(groups[kind])


def score_answers(records: Sequence[dict[str, Any]], constant: str) -> Iterator[tuple[str, float]]:
    """Yields the official accuracy in percent of the predictions and of their rivals, over all and by type.

    Args:
      records: one a question: `prediction`, `references`, perhaps `blank`, what is said of a blank image, and `type`
        and `answer_type`. Each gets its `scores`: {'accuracy', 'accuracy_blank', 'accuracy_most_frequent'}.
      constant: an answer to all questions.
    """
    for record in records:
        rivals = {"": record["prediction"], "_blank": record.get("blank"), "_most_frequent": constant}
        record["scores"] = {
            f"accuracy{suffix}": 100 * accuracy(said, record["references"])
            for suffix, said in rivals.items()
            if said is not None
        }
    for name in records[0]["scores"]:
        kinds = ([record.get("type", ""), record.get("answer_type", "")] for record in records)
        yield from by_type(name, [record["scores"][name] for record in records], kinds)
