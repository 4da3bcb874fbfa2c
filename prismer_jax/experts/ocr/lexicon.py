"""A list of known words, and which of them is nearest to a word that was read with doubt."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike

REACH = 2  # edits; a word further away is not looked for


class Lexicon:
    """Known words, in an order that decides between equally near ones."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words = [word for word in words if word]
        self._letters = np.array([word.upper() for word in self.words], np.str_)
        self._known = set(self._letters.tolist())
        self._lengths = np.char.str_len(self._letters)
        self._sets = np.array([_letters_of(word) for word in self._letters.tolist()], np.uint64)
        self._codes = self._letters.view(np.uint32).reshape(len(self.words), -1) if self.words else np.empty((0, 1))

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def read(cls, path: PathLike) -> Lexicon:
        """Reads a text file of one word a line; lines that begin with # are comments.

        Raises:
          UserError: it cannot be read.
        """
        try:
            lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a list of words, one a line ({error}).") from None
        return cls(line.strip() for line in lines if not line.startswith("#"))

    def nearest(self, text: str) -> tuple[str, int] | None:
        """Returns the word with the least edit distance from a text, the first of several; None beyond REACH edits.

        Edits are inserting, leaving out and replacing a letter; case does not count. A text that is known is returned
        as it is.
        """
        letters = text.upper()
        if letters in self._known:
            return text, 0
        # An edit changes the length by at most one and the set of letters by at most two.
        unlike = np.bitwise_count(self._sets ^ np.uint64(_letters_of(letters)))
        near = np.flatnonzero((abs(self._lengths - len(letters)) <= REACH) & (unlike <= 2 * REACH))
        if not len(near):
            return None
        distance = _distances(letters, self._codes[near], self._lengths[near])
        best = int(distance.argmin())
        return (self.words[near[best]], int(distance[best])) if distance[best] <= REACH else None


def _letters_of(text: str) -> int:
    """Returns the set of a text's letters as 64 bits; others may share a bit, which adds words, never drops one."""
    bits = 0
    for letter in text:
        bits |= 1 << (ord(letter) & 63)
    return bits


def _distances(text: str, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Levenshtein distances of a text to words, given as code points [n, longest] and their lengths.

    The usual table, a row for each letter of the text, for all words at once. Inserting letters is a running minimum of
    the row less its index.
    """
    columns = np.arange(codes.shape[1] + 1, dtype=np.int32)
    row = np.broadcast_to(columns, (len(codes), len(columns)))
    for i, letter in enumerate(text, start=1):
        replaced = row[:, :-1] + (codes != ord(letter))
        dropped = np.minimum(replaced, row[:, 1:] + 1)
        row = np.concatenate([np.full((len(codes), 1), i), dropped], 1)
        row = np.minimum.accumulate(row - columns, 1) + columns
    return np.take_along_axis(row, lengths[:, None], 1)[:, 0]
