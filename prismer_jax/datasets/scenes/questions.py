"""Questions about a scene, with ten answers each in the form of VQAv2.

Kinds of questions are balanced so that guessing without the picture scores little: yes is as frequent as no, the
colours and shapes are as frequent as each other, and rare counts are asked for when they are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prismer_jax.datasets.scenes.labels import View
from prismer_jax.datasets.scenes.text import NUMBERS, Facts, plural, with_article
from prismer_jax.datasets.scenes.world import COLORS, MATERIALS, SHAPES, WORDS, Scene, Solid


@dataclass(frozen=True)
class Question:
    text: str
    type: str
    answer: str
    answers: tuple[str, ...]  # of ten annotators


@dataclass(frozen=True)
class _Candidate:
    text: str
    answer: str


def _yes_or_no(text: str, truth: bool) -> _Candidate:
    return _Candidate(text, "yes" if truth else "no")


def _shape_or_color(solid: Solid, place: str, asks_shape: bool = True) -> _Candidate:
    """Asks for the shape of the solid in a place, or for its color."""
    if asks_shape:
        return _Candidate(f"What shape is {place}?", solid.shape)
    return _Candidate(f"What color is the shape {place}?", solid.color)


def questions(scene: Scene, view: View, rng: np.random.RandomState, number: int = 8) -> list[Question]:
    """Draws so many different questions, of types in random order, the answers of a type about equally frequent."""
    facts = Facts(scene, view)
    asked: dict[str, Question] = {}
    types = list(QUESTION_TYPES)
    weights = np.array([quota for quota, _ in _TYPES.values()])
    while len(asked) < number:
        kind = types[_draw(rng, weights)]
        candidates = [c for c in _TYPES[kind][1](facts, rng) if c.text not in asked]
        if kind == "reading":  # another wording is not another question
            read = [q.answer for q in asked.values() if q.type == "reading"]
            candidates = [c for c in candidates if c.answer not in read]
        if not candidates:
            weights[types.index(kind)] *= 0.5  # there is always something to count
            continue
        chosen = _balanced(candidates, kind, rng)
        asked[chosen.text] = Question(chosen.text, kind, chosen.answer, _annotate(chosen, kind, rng))
    return list(asked.values())


def _draw(rng: np.random.RandomState, weights: Sequence[float]) -> int:
    bounds = np.cumsum(weights)
    return int(np.searchsorted(bounds, rng.random_sample() * bounds[-1], side="right"))


# How rare a count is in a scene: the rarer, the likelier it is asked for when it is there.
_RARITY = {"0": 0.5, "1": 0.5, "2": 0.45, "3": 2.8, "4": 6.0, "5": 9.0}


def _balanced(candidates: list[_Candidate], kind: str, rng: np.random.RandomState) -> _Candidate:
    """Draws the answer first, then one of its questions: a frequent fact must not make a frequent answer."""
    by_answer: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_answer.setdefault(candidate.answer, []).append(candidate)
    answers = sorted(by_answer)
    weights = [_RARITY[a] if kind == "count" else 1.0 for a in answers]
    group = by_answer[answers[_draw(rng, weights)]]
    return group[rng.randint(len(group))]


def _colors(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    solids = facts.solids
    for s in solids:
        for key in ((s.shape,), (s.size, s.shape), (s.material, s.shape), (s.material, "shape")):
            fits = [t for t in solids if {t.shape, t.size, t.material, "shape"} >= set(key)]
            if "plain" not in key and len(fits) == 1:
                yield _Candidate(f"What color is the {' '.join(key)}?", s.color)
                break


def _counts(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    solids = facts.solids
    if rng.random_sample() < 0.3:
        yield _Candidate("How many shapes are there?", str(len(solids)))
        return
    for shape in SHAPES:
        yield _Candidate(f"How many {plural(shape)} are there?", str(sum(s.shape == shape for s in solids)))
    for color in COLORS:
        yield _Candidate(f"How many {color} shapes are there?", str(sum(s.color == color for s in solids)))
    for material in MATERIALS[1:]:
        yield _Candidate(f"How many {material} shapes are there?", str(sum(s.material == material for s in solids)))


def _comparisons(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    solids, depth = facts.solids, facts.view.depth
    form = rng.randint(4)
    by_depth = sorted(range(len(solids)), key=lambda i: depth[i])
    if form < 2:
        extremes = [("closest", by_depth[0], by_depth[1]), ("farthest", by_depth[-1], by_depth[-2])]
        extremes = [(word, i) for word, i, other in extremes if not facts.unclear(i, other, "z")]
        for size, word in (("large", "largest"), ("small", "smallest")):
            alone = [i for i, s in enumerate(solids) if s.size == size]
            if len(alone) == 1:
                extremes.append((word, alone[0]))
        for word, i in extremes:
            if form == 0:
                yield _Candidate(f"What shape is the {word}?", solids[i].shape)
            else:
                yield _Candidate(f"What color is the {word} shape?", solids[i].color)
        return
    if form == 2 and rng.random_sample() < 0.5:
        present = sorted({s.shape for s in solids})
        for a, b in itertools.permutations(present, 2):
            n, m = (sum(s.shape == shape for s in solids) for shape in (a, b))
            if n != m:
                yield _yes_or_no(f"Are there more {plural(a)} than {plural(b)}?", n > m)
        return
    for i, j in itertools.permutations(facts.named, 2):
        a, b = facts.names[i], facts.names[j]
        if form == 2 and solids[i].size != solids[j].size and not {"small", "large"} & {*a.split(), *b.split()}:
            yield _yes_or_no(f"Is the {a} larger than the {b}?", solids[i].size == "large")
        if form == 3 and not facts.unclear(i, j, "z") and solids[i].shape != solids[j].shape:
            nearer = solids[i if facts.front(i, j) else j].shape
            yield _Candidate(f"Which is closer, the {a} or the {b}?", nearer)


_SIDES = {"left of": "x", "right of": "x", "in front of": "z", "behind": "z"}  # phrase -> axis


def _relations(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    solids = facts.solids
    form = _draw(rng, (1, 1, 1.6, 1.6, 1, 1))
    if form < 2:  # extremes
        for word, i, other in (("left", *facts.order[:2]), ("right", *facts.order[:-3:-1])):
            if not facts.unclear(i, other, "x"):
                yield _shape_or_color(solids[i], f"on the far {word}", form == 0)
    elif form < 4:  # the only solid on one side of a named one
        for j in facts.named:
            for phrase in _SIDES:
                others = [i for i in range(len(solids)) if i != j and _is(facts, i, phrase, j)]
                clear = all(not facts.unclear(i, j, _SIDES[phrase]) for i in range(len(solids)) if i != j)
                if len(others) == 1 and clear:
                    yield _shape_or_color(solids[others[0]], f"{phrase} the {facts.names[j]}", form == 2)
    elif form == 4:  # between, hidden
        for i, j, k in facts.between():
            if facts.names[i] and facts.names[k]:
                yield _shape_or_color(solids[j], f"between the {facts.names[i]} and the {facts.names[k]}")
        for i in facts.named:
            behind = [j for j in range(len(solids)) if facts.hides(i, j)]
            if len(behind) == 1:
                yield _shape_or_color(solids[behind[0]], f"partly hidden by the {facts.names[i]}")
    else:
        for i, j in itertools.permutations(facts.named, 2):
            for phrase, axis in _SIDES.items():
                if not facts.unclear(i, j, axis):
                    text = f"Is the {facts.names[i]} {phrase} the {facts.names[j]}?"
                    yield _yes_or_no(text, _is(facts, i, phrase, j))


def _is(facts: Facts, i: int, phrase: str, j: int) -> bool:
    first, second = (i, j) if phrase in ("left of", "in front of") else (j, i)
    return facts.left(first, second) if _SIDES[phrase] == "x" else facts.front(first, second)


def _existences(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    """One form is drawn first; within each, yes and no fit the same questions equally often."""
    solids = facts.solids
    form = _draw(rng, (2, 4, 1, 1))
    if form == 0:
        for color in COLORS:
            for shape in SHAPES:
                there = any(s.color == color and s.shape == shape for s in solids)
                yield _yes_or_no(f"Is there {with_article(f'{color} {shape}')}?", there)
    elif form == 1:
        for shape in SHAPES:
            yield _yes_or_no(f"Is there {with_article(shape)}?", any(s.shape == shape for s in solids))
        for color in COLORS:
            yield _yes_or_no(f"Is there anything {color}?", any(s.color == color for s in solids))
    elif form == 2 and any(s.material != "plain" for s in solids):  # else there would be no question for a yes
        for material in MATERIALS[1:]:
            yield _yes_or_no(f"Is there a {material} shape?", any(s.material == material for s in solids))
    elif form == 3 and facts.signs:
        words = [sign.word for sign in facts.signs]
        for word in WORDS:
            yield _yes_or_no(f"Is there a sign that says {word}?", word in words)


def _readings(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    if len(facts.signs) == 1:
        text = ("What does the sign say?", "What word is on the sign?", "What is written on the sign?")[rng.randint(3)]
        yield _Candidate(text, facts.signs[0].word)
    elif facts.signs and not facts.unclear(*facts.sign_order, "x"):
        for side, sign in zip(("left", "right"), facts.signs, strict=True):
            yield _Candidate(f"What does the {side} sign say?", sign.word)


# Type -> how often it is drawn while a scene has new questions of it, and what yields them. Most scenes have few to
# read, all have much to count.
_TYPES: dict[str, tuple[float, Callable[[Facts, np.random.RandomState], Iterator[_Candidate]]]] = {
    "color": (2.2, _colors),
    "count": (0.7, _counts),
    "comparison": (2.0, _comparisons),
    "relation": (2.2, _relations),
    "existence": (0.4, _existences),
    "reading": (8.0, _readings),
}
QUESTION_TYPES = tuple(_TYPES)

# What annotators write instead, being as right, and what they mistake it for.
_SYNONYMS = {
    "gray": "grey",
    "sphere": "ball",
    "box": "cube",
    "torus": "ring",
    "cylinder": "tube",
    **dict(zip("0123456", NUMBERS, strict=True)),
}
_MISTAKES = {
    **{"red": "orange", "orange": "red", "yellow": "gold", "green": "teal", "blue": "purple", "purple": "blue"},
    **{"pink": "purple", "gray": "silver", "yes": "no", "no": "yes", "pyramid": "cone", "cone": "triangle"},
}


def _annotate(candidate: _Candidate, kind: str, rng: np.random.RandomState) -> tuple[str, ...]:
    """Ten answers, of which at least seven are the true one: it scores 100% by VQAv2's measure."""
    truth, answers = candidate.answer, [candidate.answer] * 10
    if truth in _SYNONYMS and rng.random_sample() < 0.5:
        answers[0] = answers[rng.randint(2)] = _SYNONYMS[truth]
    mistake = str(int(truth) + 1) if truth.isdigit() else f"{truth} sign" if kind == "reading" else _MISTAKES.get(truth)
    if mistake and rng.random_sample() < 0.2:
        answers[-1] = mistake
    return tuple(answers[i] for i in rng.permutation(10))
