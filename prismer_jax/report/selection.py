"""Which samples of an evaluation are looked at: the best, the worst, and some at random, but always the same."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Record = Mapping[str, Any]


def chosen(
    records: Sequence[Record], n: int, which: Literal["random", "best", "worst"], score: str, higher_is_better: bool
) -> list[Record]:
    """Returns at most n records, in turn of every question type; none is best or worst whose score lacks or is NaN."""
    if which == "random":
        return _spread([records], n)
    scores = [(record.get("scores", {}).get(score), record) for record in records]
    scored = [(x, record) for x, record in scores if x is not None and x == x]
    return by_score(scored, n, highest=(which == "best") == higher_is_better)


def by_score(scored: Sequence[tuple[float, Record]], n: int, *, highest: bool) -> list[Record]:
    """Returns at most n records with the highest (or lowest) scores; among equals as at random."""
    ordered = sorted(scored, key=lambda pair: pair[0], reverse=highest)
    equals = itertools.groupby(ordered, key=lambda pair: pair[0])
    return _spread(((record for _, record in group) for _, group in equals), n)


def _spread(groups: Iterable[Iterable[Record]], n: int) -> list[Record]:
    """Returns at most n records of the first groups: of each in turn of every type, lowest checksums of ids first."""
    chosen: list[Record] = []
    seen = set()
    for group in groups:
        if len(chosen) >= n:
            break
        kinds: dict[str, list[Record]] = {}
        for record in sorted(group, key=lambda record: zlib.crc32(str(record["id"]).encode())):
            kinds.setdefault(record["type"], []).append(record)
        while len(chosen) < n and kinds:
            for kind in sorted(kinds):
                # Of the same photo there may be many questions: others first.
                record = next((r for r in kinds[kind] if r["photo"] not in seen), kinds[kind][0])
                chosen.append(record)
                seen.add(record["photo"])
                kinds[kind].remove(record)
                if not kinds[kind]:
                    del kinds[kind]
    return chosen[:n]
