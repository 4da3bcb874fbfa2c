"""What was left out of a data set, and why: the counts that every report on data shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prismer_jax.errors import BadSample

FIRST = 5  # cases of each reason that are kept by name

logger = logging.getLogger(__name__)


class Dropped:
    """Counts by reason, with the first cases of each. Two of them can be added up, and one be stored as JSON.

    A reason is a few words that are the same for all cases of a kind ('missing photo'); a case is a line that names
    the file or the sample.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._cases: dict[str, list[str]] = {}

    def add(self, reason: str, case: str | None = None, count: int = 1) -> None:
        """Counts one case, or `count` cases that only the first is named of, or none."""
        self._counts[reason] = self._counts.get(reason, 0) + count
        cases = self._cases.setdefault(reason, [])
        if case is not None and len(cases) < FIRST:
            cases.append(case)

    def add_error(self, error: BadSample) -> None:
        """Counts a bad sample under the reason that it gives."""
        self.add(error.reason, str(error))

    def update(self, other: Dropped) -> None:
        """Counts all that another has counted."""
        for reason, count in other._counts.items():
            self.add(reason, count=count)
            cases = self._cases[reason]
            cases += other._cases[reason][: FIRST - len(cases)]

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> number of cases, the most frequent first."""
        return dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def total(self) -> int:
        return sum(self._counts.values())

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dropped) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def lines(self) -> list[str]:
        """Returns the report: a line a reason, with its count and its first case."""
        width = max((len(f"{count:,}") for count in self._counts.values()), default=0)
        lines = []
        for reason, count in self.counts.items():
            cases = self._cases[reason]
            lines.append(f"{count:>{width},} x {reason}" + (f", the first: {cases[0]}" if cases else ""))
        return lines

    def warn(self, where: object) -> None:
        """Logs the report, of what was left out of a list, a folder ..."""
        for line in self.lines():
            logger.warning("%s: left out: %s.", where, line.strip().rstrip("."))

    def to_json(self) -> dict[str, Any]:
        """Returns {reason: {"count": n, "first": [cases]}}, the most frequent reason first."""
        return {reason: {"count": count, "first": list(self._cases[reason])} for reason, count in self.counts.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Dropped:
        """Reads what `to_json` returned."""
        dropped = cls()
        for reason, entry in content.items():
            dropped.add(reason, count=int(entry["count"]))
            dropped._cases[reason] = [str(case) for case in entry["first"]]
        return dropped
