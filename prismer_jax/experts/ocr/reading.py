"""What CharNet's maps say: words, their boxes and characters, and the label map made of them. On the host, NumPy.

Source: NVlabs/prismer, experts/ocr_detection/charnet/modeling/postprocessing.py, charnet/config/defaults.py and
experts/generate_ocrdet.py (get_label).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prismer_jax.experts.ocr import quads
from prismer_jax.experts.ocr.hourglass import STRIDE
from prismer_jax.experts.ocr.lexicon import Lexicon
from prismer_jax.labels import BACKGROUND
from prismer_jax.typing import UInt8, typed

# The network's 68 classes in their order (datasets/ICDAR2015/test/char_dict.txt).
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#\"%$'&)(+*-,/.;:=<?>@[]\\_^`{}|~"
WORD_SCORE, WORD_OVERLAP = 0.5, 0.15
CHAR_SCORE, CHAR_OVERLAP = 0.25, 0.3
# By the mean probability of its characters a word is dropped, looked up in the lexicon, or kept as it was read.
DOUBTFUL, SURE_OF_SIGNS, SURE = 0.80, 0.90, 0.98


@dataclass(frozen=True)
class Word:
    """A word that was read.

    Attributes:
      box: float32 [4, 2], whole pixels inside the photo.
      score: that there is a word.
      text: in capitals.
      text_score: mean probability of its characters.
    """

    box: np.ndarray
    score: np.float32
    text: str
    text_score: np.float32


@dataclass(frozen=True)
class Boxes:
    """Words or characters found, the surest first.

    Attributes:
      corners: float32 [n, 4, 2], whole pixels inside the photo.
      scores: float32 [n].
      classes: float32 [n, 68], probabilities of the characters; [n, 0] for words.
    """

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def words_of(maps: Mapping[str, np.ndarray], size: tuple[int, int], lexicon: Lexicon) -> list[Word]:
    """Reads the words of one photo, the surest box first.

    Args:
      maps: float32 word_score, char_score and word_angle [gh, gw]; word_sides and char_sides [gh, gw, 4]; char_class
        [gh, gw, 68]; scores and classes as probabilities.
      size: (height, width) of the photo.
      lexicon: known words; empty, no word is kept whose characters are in doubt.
    """
    words, characters = find(maps, size)
    checked = (check(word, lexicon) for word in spell(words, characters))
    return [word for word in checked if word is not None]


def find(maps: Mapping[str, np.ndarray], size: tuple[int, int]) -> tuple[Boxes, Boxes]:
    """Finds words, and characters where words are, without knowing yet which belong together."""
    in_words = maps["word_score"] > WORD_SCORE
    in_characters = in_words & (maps["char_score"] > CHAR_SCORE)
    no_classes = np.empty((*in_words.shape, 0), np.float32)
    return (
        _boxes(in_words, maps["word_score"], maps["word_sides"], maps["word_angle"], no_classes, size, WORD_OVERLAP),
        _boxes(in_characters, maps["char_score"], maps["char_sides"], None, maps["char_class"], size, CHAR_OVERLAP),
    )


def _boxes(
    where: np.ndarray,
    score: np.ndarray,
    sides: np.ndarray,
    angle: np.ndarray | None,
    classes: np.ndarray,
    size: tuple[int, int],
    overlap: float,
) -> Boxes:
    """Every cell of `where` guesses a box; guesses of the same are merged."""
    rows, columns = np.nonzero(where)
    # Cells are squares of the network's input, whose proportions are not the photo's.
    height, width = (pixels / (STRIDE * cells) * STRIDE for pixels, cells in zip(size, where.shape, strict=True))
    guesses = quads.rectangles(
        np.stack([columns * width, rows * height], 1),
        sides[rows, columns] * np.array([height, height, width, width]),
        np.zeros(1) if angle is None else angle[rows, columns],
    )
    corners, scores, classes = quads.merge(guesses, score[rows, columns], overlap, classes[rows, columns])
    limits = np.array([size[1] - 1, size[0] - 1], np.float32)
    return Boxes(np.clip(corners.round(), 0, limits), scores, classes)


def spell(words: Boxes, characters: Boxes) -> list[Word]:
    """Gives each character to the word it overlaps most with, and reads words from left to right.

    Words without characters, and characters without a word, are dropped. Of words that a character overlaps with
    equally it belongs to the first; characters at the same place are read in their own order.
    """
    (low, high), (word_low, word_high) = quads.bounds(characters.corners), quads.bounds(words.corners)
    near = ((low[:, None] < word_high) & (word_low < high[:, None])).all(-1)
    character, word = np.nonzero(near)
    overlap = np.zeros(near.shape, np.float32)
    overlap[near] = quads.overlaps(characters.corners[character], words.corners[word])
    owner = np.where(overlap.any(1), overlap.argmax(1), -1) if len(words.scores) else np.empty(0)
    spelt = []
    for i, (box, score) in enumerate(zip(words.corners, words.scores, strict=True)):
        members = np.flatnonzero(owner == i)
        if len(members):
            members = members[np.argsort(characters.corners[members, :, 0].mean(1), kind="stable")]
            classes = characters.classes[members]
            text = "".join(CHARACTERS[c] for c in classes.argmax(1))
            spelt.append(Word(box, score, text, classes.max(1).mean()))
    return spelt


def check(word: Word, lexicon: Lexicon) -> Word | None:
    """Returns the word as it is where its characters are sure, else as the lexicon spells it; None if neither.

    The longer the known word, the more letters of it may have been misread.
    """
    if word.text_score < DOUBTFUL:
        return None
    if word.text_score >= SURE or (word.text_score >= SURE_OF_SIGNS and not word.text.isalpha()):
        return word
    nearest, edits = lexicon.nearest(word.text) or ("", np.inf)
    allowed = 0 if len(nearest) <= 2 else 1 if len(nearest) <= 5 else 2
    return replace(word, text=nearest) if edits <= allowed else None


@typed
def label_map(words: Sequence[Word], size: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 1"], list[str]]:
    """Draws words with ids, and names them in the order of ids, in small letters.

    Ids count from the least sure word, which surer ones cover. There are no more than 255: the surest.

    Args:
      words: the surest first.
      size: (height, width).
    """
    drawn = list(reversed(words[:BACKGROUND]))
    ids = np.full(size, BACKGROUND, np.uint8)
    for i, word in enumerate(drawn):
        quads.fill(ids, word.box.astype(np.int32), i)
    return ids[..., None], [word.text.lower() for word in drawn]
