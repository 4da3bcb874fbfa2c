"""A long list of small dicts in little memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_encode = json.JSONEncoder(separators=(",", ":")).encode


class CompactDicts(Sequence[dict[str, Any]]):
    """Dicts of JSON values, kept as one run of bytes and unpacked when they are asked for.

    Millions of Python objects take several times the memory, slow the garbage collector down, and are what takes time
    when a source goes to a worker process.
    """

    def __init__(self, items: Iterable[dict[str, Any]]) -> None:
        data, ends = bytearray(), [0]
        for item in items:
            data += _encode(item).encode()
            ends.append(len(data))
        self.data, self._ends = bytes(data), np.asarray(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        index %= len(self)
        return json.loads(self.data[self._ends[index] : self._ends[index + 1]])
