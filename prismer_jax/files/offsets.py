"""Files that are read one after the other as if they were one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Offsets:
    """Which file a row is in, of files with these numbers of rows; `len` is that of all rows."""

    def __init__(self, lengths: Iterable[int]) -> None:
        self._ends = np.cumsum(list(lengths), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, row: int) -> tuple[int, int]:
        """Returns the number of a row's file and the row's own number in it; -1 is the last row.

        Raises:
          IndexError: there is no such row.
        """
        row = range(len(self))[row]
        file = int(np.searchsorted(self._ends, row, side="right"))
        return file, row - (int(self._ends[file - 1]) if file else 0)
