"""What can be said about a scene: five captions, and the facts that captions and questions rest on.

Only what the picture shows beyond doubt is said: a solid is called by a description that fits no other one, "left" is a
clear distance in the image, "in front" a clear distance in depth, every word is legible. Written in American
English, as VQAv2 is. The small vocabulary is meant to be learnt within minutes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prismer_jax.datasets.scenes.labels import View
from prismer_jax.datasets.scenes.world import GROUNDS, SHAPES, Scene, Solid

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_ASIDE, _DEEP = 0.09, 0.7  # least distances of left/right (share of the image's width) and of near/far (world units)


class Facts:
    """A scene's solids with names that identify them, and the relations that hold between them."""

    def __init__(self, scene: Scene, view: View):
        self.view, self.solids = view, scene.solids
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
        """Returns whether solid i clearly covers a part of solid j."""
        return self.view.hidden_by[j, i] > 0.12

    def unclear(self, i: int, j: int, axis: str) -> bool:
        """Returns whether it cannot be said which of the two is left, or in front, of the other."""
        relation = self.left if axis == "x" else self.front
        return not relation(i, j) and not relation(j, i)

    def between(self) -> list[tuple[int, int, int]]:
        """Neighbours (i, j, k) of which j is clearly right of i and left of k."""
        triples = zip(self.order, self.order[1:], self.order[2:], strict=False)
        return [(i, j, k) for i, j, k in triples if self.left(i, j) and self.left(j, k)]


def captions(scene: Scene, view: View, rng: np.random.RandomState) -> list[str]:
    """Returns five captions: a list of the solids, two relations, a summary with counts, the signs or materials."""
    facts = Facts(scene, view)
    where = GROUNDS[scene.ground][3]
    prominent = sorted(range(len(facts.solids)), key=lambda i: -view.area[i])
    lines = [_list(facts, where), _relation(facts, prominent, rng), _depth_relation(facts, prominent, rng)]
    lines += [_summary(facts, where), _sign_line(facts, prominent, rng)]
    return [line[0].upper() + line[1:] + "." for line in lines]


def _list(facts: Facts, where: str) -> str:
    """Every solid from left to right, like ones together."""
    kinds = [(facts.solids[i].color, facts.solids[i].shape) for i in facts.order]
    listed = join([count_of(kinds.count(kind), *kind) for kind in dict.fromkeys(kinds)])
    return f"{listed} {where} with {_signs(facts)}" if facts.signs else f"{listed} {where}"


def _summary(facts: Facts, where: str) -> str:
    """How many of each shape, the most frequent first."""
    shapes = [s.shape for s in facts.solids]
    counted = sorted(((shapes.count(shape), shape) for shape in SHAPES if shape in shapes), key=lambda pair: -pair[0])
    return f"{join([count_of(n, shape) for n, shape in counted])} stand {where}"


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
    rows = facts.between()
    if rows and (not clear or rng.random_sample() < 0.5):
        i, j, k = rows[0]
        return f"{_detailed(facts, j)} is between {_brief(facts, i)} and {_brief(facts, k)}"
    return f"{_detailed(facts, i)} is {'in front of' if clear else 'beside'} {_detailed(facts, j)}"


def _sign_line(facts: Facts, prominent: list[int], rng: np.random.RandomState) -> str:
    """What the signs say, or else how the two largest solids in the picture look."""
    first, others = prominent[0], len(facts.solids) - 2
    if facts.signs:
        verb = "stands" if len(facts.signs) == 1 else "stand"
        behind = all(facts.front(first, sign) for sign in facts.sign_order)
        before = all(facts.front(sign, first) for sign in facts.sign_order)
        place = "behind" if behind else "in front of" if before else "next to"
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


def _detailed(facts: Facts, i: int) -> str:
    s = facts.solids[i]
    material = "" if s.material == "plain" else s.material + " "
    return with_article(f"{s.size} {material}{s.color} {s.shape}")


def _brief(facts: Facts, i: int) -> str:
    return with_article(f"{facts.solids[i].color} {facts.solids[i].shape}")


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def count_of(n: int, *words: str) -> str:
    return with_article(" ".join(words)) if n == 1 else " ".join([NUMBERS[n], *words[:-1], plural(words[-1])])


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "s")) else "s")


def join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
