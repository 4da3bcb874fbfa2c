"""Questions about a scene, with ten answers each in the form of VQAv2.

Kinds of questions are balanced so that guessing without the picture scores little: yes is as frequent as no, the
colours and shapes are as frequent as each other, and rare counts are asked for when they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prismer_jax.datasets.scenes.labels import View
from prismer_jax.datasets.scenes.text import NUMBERS, Facts, plural, with_article
from prismer_jax.datasets.scenes.world import COLORS, MATERIALS, SHAPES, WORDS, Scene

QUESTION_TYPES = ("color", "count", "comparison", "relation", "existence", "reading")


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


# How often a type is drawn while a scene has new questions of it; most scenes have few to read, all have much to count.
_QUOTAS = {"color": 2.2, "count": 0.7, "comparison": 2.0, "relation": 2.2, "existence": 0.4, "reading": 8.0}


def questions(scene: Scene, view: View, rng: np.random.RandomState, number: int = 8) -> list[Question]:
    """Draws so many different questions, of types in random order, the answers of a type about equally frequent."""
    facts = Facts(scene, view)
    asked: dict[str, Question] = {}
    types = list(QUESTION_TYPES)
    weights = np.array([_QUOTAS[t] for t in types])
    while len(asked) < number:
        kind = types[_draw(rng, weights)]
        candidates = [c for c in _POOLS[kind](facts, rng) if c.text not in asked]
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
        for a in present:
            for b in present:
                n, m = (sum(s.shape == shape for s in solids) for shape in (a, b))
                if n != m:
                    answer = "yes" if n > m else "no"
                    yield _Candidate(f"Are there more {plural(a)} than {plural(b)}?", answer)
        return
    for i in facts.named:
        for j in facts.named:
            if i == j:
                continue
            a, b = facts.names[i], facts.names[j]
            if form == 2 and solids[i].size != solids[j].size and not {"small", "large"} & {*a.split(), *b.split()}:
                yield _Candidate(f"Is the {a} larger than the {b}?", "yes" if solids[i].size == "large" else "no")
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
                if form == 0:
                    yield _Candidate(f"What shape is on the far {word}?", solids[i].shape)
                else:
                    yield _Candidate(f"What color is the shape on the far {word}?", solids[i].color)
    elif form < 4:  # the only solid on one side of a named one
        for j in facts.named:
            for phrase in _SIDES:
                others = [i for i in range(len(solids)) if i != j and _is(facts, i, phrase, j)]
                clear = all(not facts.unclear(i, j, _SIDES[phrase]) for i in range(len(solids)) if i != j)
                if len(others) == 1 and clear:
                    if form == 2:
                        yield _Candidate(f"What shape is {phrase} the {facts.names[j]}?", solids[others[0]].shape)
                    else:
                        answer = solids[others[0]].color
                        yield _Candidate(f"What color is the shape {phrase} the {facts.names[j]}?", answer)
    elif form == 4:  # between, hidden
        for i, j, k in facts.between():
            if facts.names[i] and facts.names[k]:
                ends = (facts.names[i], facts.names[k])
                text = f"What shape is between the {ends[0]} and the {ends[1]}?"
                yield _Candidate(text, solids[j].shape)
        for i in facts.named:
            behind = [j for j in range(len(solids)) if facts.hides(i, j)]
            if len(behind) == 1:
                yield _Candidate(f"What shape is partly hidden by the {facts.names[i]}?", solids[behind[0]].shape)
    else:
        for i in facts.named:
            for j in facts.named:
                for phrase, axis in _SIDES.items():
                    if i != j and not facts.unclear(i, j, axis):
                        answer = "yes" if _is(facts, i, phrase, j) else "no"
                        yield _Candidate(f"Is the {facts.names[i]} {phrase} the {facts.names[j]}?", answer)


def _is(facts: Facts, i: int, phrase: str, j: int) -> bool:
    match phrase:
        case "left of":
            return facts.left(i, j)
        case "right of":
            return facts.left(j, i)
        case "in front of":
            return facts.front(i, j)
        case _:
            return facts.front(j, i)


def _existences(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    """One form is drawn first; within each, yes and no fit the same questions equally often."""
    solids = facts.solids
    form = _draw(rng, (2, 4, 1, 1))
    if form == 0:
        for color in COLORS:
            for shape in SHAPES:
                there = any(s.color == color and s.shape == shape for s in solids)
                yield _Candidate(f"Is there {with_article(f'{color} {shape}')}?", "yes" if there else "no")
    elif form == 1:
        for shape in SHAPES:
            yield _Candidate(
                f"Is there {with_article(shape)}?", "yes" if any(s.shape == shape for s in solids) else "no"
            )
        for color in COLORS:
            there = any(s.color == color for s in solids)
            yield _Candidate(f"Is there anything {color}?", "yes" if there else "no")
    elif form == 2 and any(s.material != "plain" for s in solids):  # else there would be no question for a yes
        for material in MATERIALS[1:]:
            there = any(s.material == material for s in solids)
            yield _Candidate(f"Is there a {material} shape?", "yes" if there else "no")
    elif form == 3 and facts.signs:
        words = [sign.word for sign in facts.signs]
        for word in WORDS:
            yield _Candidate(f"Is there a sign that says {word}?", "yes" if word in words else "no")


def _readings(facts: Facts, rng: np.random.RandomState) -> Iterator[_Candidate]:
    if len(facts.signs) == 1:
        text = ("What does the sign say?", "What word is on the sign?", "What is written on the sign?")[rng.randint(3)]
        yield _Candidate(text, facts.signs[0].word)
    elif facts.signs and not facts.unclear(*facts.sign_order, "x"):
        for side, sign in zip(("left", "right"), facts.signs, strict=True):
            yield _Candidate(f"What does the {side} sign say?", sign.word)


_POOLS: dict[str, Callable[[Facts, np.random.RandomState], Iterator[_Candidate]]] = {
    "color": _colors,
    "count": _counts,
    "comparison": _comparisons,
    "relation": _relations,
    "existence": _existences,
    "reading": _readings,
}

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
