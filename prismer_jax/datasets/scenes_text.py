"""What can be said and asked about a scene: captions, and questions with ten answers each in the form of VQAv2.

Only what the picture shows beyond doubt is said: a solid is called by a description that fits no other one, "left" is a
clear distance in the image, "in front" a clear distance in depth, every word is legible. Written in American
English, as VQAv2 is. The small vocabulary is meant to be learnt within minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prismer_jax.datasets.scenes_labels import View
from prismer_jax.datasets.scenes_world import COLORS, GROUNDS, MATERIALS, SHAPES, WORDS, Scene, Solid

QUESTION_TYPES = ("color", "count", "comparison", "relation", "existence", "reading")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_ASIDE, _DEEP = 0.09, 0.7  # least distances of left/right (share of the image's width) and of near/far (world units)


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


class Facts:
    """A scene's solids with names that identify them, and the relations that hold between them."""

    def __init__(self, scene: Scene, view: View):
        self.scene, self.view = scene, view
        self.solids = scene.solids
        self.order = sorted(range(len(scene.solids)), key=lambda i: view.x[i])  # left to right
        self.names = [self._name(i) for i in range(len(scene.solids))]
        self.named = [i for i, name in enumerate(self.names) if name]
        first = len(scene.solids)
        self.sign_order = sorted(range(first, len(scene.instances)), key=lambda i: view.x[i])
        self.signs = [scene.signs[i - first] for i in self.sign_order]  # left to right

    def _name(self, i: int) -> str | None:
        """The shortest description that fits this solid alone: "red box", "large red box", "striped red box"."""
        me = self.solids[i]
        keys: list[Callable[[Solid], tuple[str, ...]]] = [
            lambda s: (s.color, s.shape),
            lambda s: (s.size, s.color, s.shape),
            lambda s: (s.material, s.color, s.shape),
        ]
        for key in keys:
            if sum(key(s) == key(me) for s in self.solids) == 1 and "plain" not in key(me):
                return " ".join(key(me))
        return None

    def left(self, i: int, j: int) -> bool:
        return self.view.x[i] < self.view.x[j] - _ASIDE

    def front(self, i: int, j: int) -> bool:
        return self.view.depth[i] < self.view.depth[j] - _DEEP

    def hides(self, i: int, j: int) -> bool:
        """Whether solid i clearly covers a part of solid j."""
        return self.view.hidden_by[j, i] > 0.12

    def unclear(self, i: int, j: int, axis: str) -> bool:
        """Whether it cannot be said which of the two is left, or in front, of the other."""
        relation = self.left if axis == "x" else self.front
        return not relation(i, j) and not relation(j, i)


# ---------------------------------------------------------------------------------------------------- captions


def captions(scene: Scene, view: View, rng: np.random.RandomState) -> list[str]:
    """Five captions: the list of the solids, two relations, a summary with counts, and the signs or materials."""
    facts = Facts(scene, view)
    where = GROUNDS[scene.ground][3]
    prominent = sorted(range(len(facts.solids)), key=lambda i: -view.area[i])
    lines = [_list(facts, where), _relation(facts, prominent, rng), _depth_relation(facts, prominent, rng)]
    lines += [_summary(facts, where), _sign_line(facts, prominent, rng)]
    return [line[0].upper() + line[1:] + "." for line in lines]


def _list(facts: Facts, where: str) -> str:
    """Every solid from left to right, like ones together."""
    kinds = [(facts.solids[i].color, facts.solids[i].shape) for i in facts.order]
    listed = _join([_number(kinds.count(kind), *kind) for kind in dict.fromkeys(kinds)])
    return f"{listed} {where} with {_signs(facts)}" if facts.signs else f"{listed} {where}"


def _summary(facts: Facts, where: str) -> str:
    """How many of each shape, the most frequent first."""
    shapes = [s.shape for s in facts.solids]
    counted = sorted(((shapes.count(shape), shape) for shape in SHAPES if shape in shapes), key=lambda pair: -pair[0])
    return f"{_join([_number(n, shape) for n, shape in counted])} stand {where}"


def _relation(facts: Facts, prominent: list[int], rng: np.random.RandomState) -> str:
    """Which of the most prominent solids is left of the other."""
    i, j, clear = _pair(prominent, facts.left)
    if not clear:
        return f"{_detailed(facts, i)} is close to {_detailed(facts, j)}"
    if rng.random_sample() < 0.5:
        return f"{_detailed(facts, i)} is to the left of {_detailed(facts, j)}"
    return f"{_detailed(facts, j)} is to the right of {_detailed(facts, i)}"


def _depth_relation(facts: Facts, prominent: list[int], rng: np.random.RandomState) -> str:
    """What hides what, or else what is between what, or in front of what."""
    hiding = [(i, j) for i in prominent for j in prominent if facts.hides(i, j)]
    if hiding:
        i, j = hiding[0]
        return f"{_detailed(facts, j)} is partly hidden behind {_detailed(facts, i)}"
    i, j, clear = _pair(prominent, facts.front)
    between = _between(facts)
    if between and (not clear or rng.random_sample() < 0.5):
        i, j, k = between[0]
        return f"{_detailed(facts, j)} is between {_brief(facts, i)} and {_brief(facts, k)}"
    return f"{_detailed(facts, i)} is {'in front of' if clear else 'beside'} {_detailed(facts, j)}"


def _sign_line(facts: Facts, prominent: list[int], rng: np.random.RandomState) -> str:
    """What the signs say, or else how the two largest solids in the picture look."""
    first, others = prominent[0], len(facts.solids) - 2
    if facts.signs:
        verb = "stands" if len(facts.signs) == 1 else "stand"
        sign = facts.sign_order[0]
        place = "behind" if facts.front(first, sign) else "in front of" if facts.front(sign, first) else "next to"
        return f"{_signs(facts)} {verb} {place} {_brief(facts, first)}"
    line = f"{_detailed(facts, first)} and {_detailed(facts, prominent[1])}"
    return line if not others else f"{line} with {NUMBERS[others]} other {'shape' if others == 1 else 'shapes'}"


def _signs(facts: Facts) -> str:
    words = [sign.word for sign in facts.signs]
    return f"a sign that says {words[0]}" if len(words) == 1 else f"signs that say {words[0]} and {words[1]}"


def _pair(prominent: list[int], relation: Callable[[int, int], bool]) -> tuple[int, int, bool]:
    """The most prominent pair for which the relation holds and True; if there is none, the two largest and False."""
    for n, a in enumerate(prominent):
        for b in prominent[:n]:
            if relation(a, b):
                return a, b, True
            if relation(b, a):
                return b, a, True
    return prominent[0], prominent[1], False


def _between(facts: Facts) -> list[tuple[int, int, int]]:
    triples = zip(facts.order, facts.order[1:], facts.order[2:], strict=False)
    return [(i, j, k) for i, j, k in triples if facts.left(i, j) and facts.left(j, k)]


def _detailed(facts: Facts, i: int) -> str:
    s = facts.solids[i]
    material = "" if s.material == "plain" else s.material + " "
    return _a(f"{s.size} {material}{s.color} {s.shape}")


def _brief(facts: Facts, i: int) -> str:
    return _a(f"{facts.solids[i].color} {facts.solids[i].shape}")


# --------------------------------------------------------------------------------------------------- questions

_QUOTAS = {"color": 1.7, "count": 1.5, "comparison": 1.5, "relation": 1.7, "existence": 0.9, "reading": 2.5}


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
_RARITY = {"0": 0.55, "1": 0.55, "2": 1.0, "3": 2.6, "4": 6.0, "5": 9.0, "6": 9.0}


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
        yield _Candidate(f"How many {_plural(shape)} are there?", str(sum(s.shape == shape for s in solids)))
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
                    yield _Candidate(f"Are there more {_plural(a)} than {_plural(b)}?", answer)
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
        for i, j, k in _between(facts):
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
    form = _draw(rng, (3, 2, 1, 1))
    if form == 0:
        for color in COLORS:
            for shape in SHAPES:
                there = any(s.color == color and s.shape == shape for s in solids)
                yield _Candidate(f"Is there {_a(f'{color} {shape}')}?", "yes" if there else "no")
    elif form == 1:
        for shape in SHAPES:
            yield _Candidate(f"Is there {_a(shape)}?", "yes" if any(s.shape == shape for s in solids) else "no")
        for color in COLORS:
            there = any(s.color == color for s in solids)
            yield _Candidate(f"Is there anything {color}?", "yes" if there else "no")
    elif form == 2:
        for material in MATERIALS[1:]:
            there = any(s.material == material for s in solids)
            yield _Candidate(f"Is there a {material} shape?", "yes" if there else "no")
    elif facts.signs:
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


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _number(n: int, *words: str) -> str:
    return _a(" ".join(words)) if n == 1 else " ".join([NUMBERS[n], *words[:-1], _plural(words[-1])])


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "s")) else "s")


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
