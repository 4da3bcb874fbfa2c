import numpy as np
import pytest

from prismer_jax.experts.ocr import reading
from prismer_jax.experts.ocr.lexicon import Lexicon
from prismer_jax.experts.ocr.reading import CHARACTERS, Word

GRID = 40
SIZE = (160, 160)  # of the photo: 4 pixels a cell, in both directions


def blank():
    maps = {f"{kind}_score": np.zeros((GRID, GRID), np.float32) for kind in ("word", "char")}
    maps |= {f"{kind}_sides": np.zeros((GRID, GRID, 4), np.float32) for kind in ("word", "char")}
    maps["word_angle"] = np.zeros((GRID, GRID), np.float32)
    maps["char_class"] = np.full((GRID, GRID, 68), 0.1 / 68, np.float32)
    return maps


def put(maps, kind, left, top, right, bottom, score):
    """Draws a box, in cells: every cell in it sees all of it, the first ones a little surer."""
    for y in range(top, min(bottom + 1, GRID)):
        for x in range(left, min(right + 1, GRID)):
            maps[f"{kind}_sides"][y, x] = (y - top, bottom - y, x - left, right - x)
            maps[f"{kind}_score"][y, x] = score - 1e-4 * (x - left + y - top)


def write(maps, text, left, top, score=0.9, sure=0.99):
    """Draws a word whose characters are 3 cells wide and 5 high."""
    put(maps, "word", left, top, left + 4 * len(text) - 1, top + 6, score)
    for i, character in enumerate(text):
        x = left + 4 * i
        put(maps, "char", x, top + 1, x + 2, top + 5, 0.8)
        maps["char_class"][top + 1 : top + 6, x : x + 3, CHARACTERS.index(character)] = sure


def texts(words):
    return [word.text for word in words]


def test_words_are_read_from_the_surest_on():
    maps = blank()
    write(maps, "CAR", 2, 3, score=0.8)
    write(maps, "A-1", 20, 25, score=0.9)
    found = reading.words_of(maps, SIZE, Lexicon())
    assert texts(found) == ["A-1", "CAR"]
    np.testing.assert_array_equal(found[1].box, [[8, 12], [52, 12], [52, 36], [8, 36]])
    assert found[1].score == np.float32(0.8)
    np.testing.assert_allclose(found[1].text_score, 0.99, rtol=1e-6)


def test_boxes_have_the_photos_proportions_and_end_at_its_border():
    maps = blank()
    write(maps, "CAR", 29, 3)
    (word,) = reading.words_of(maps, (80, 320), Lexicon())
    np.testing.assert_array_equal(word.box, [[232, 6], [319, 6], [319, 18], [232, 18]])


def test_no_word_is_an_empty_map():
    assert reading.words_of(blank(), SIZE, Lexicon(["CAR"])) == []
    ids, words = reading.label_map([], (3, 5))
    assert ids.shape == (3, 5, 1)
    assert (ids == 255).all()
    assert words == []


def test_a_word_without_characters_and_characters_without_a_word_are_dropped():
    maps = blank()
    put(maps, "word", 2, 2, 12, 8, 0.9)
    put(maps, "char", 20, 20, 23, 25, 0.9)
    words, characters = reading.find(maps, SIZE)
    assert len(words.scores) == 1
    assert len(characters.scores) == 0
    assert reading.spell(words, characters) == []


def test_one_cell_alone_is_noise():
    maps = blank()
    put(maps, "word", 5, 5, 5, 5, 0.9)
    maps["word_sides"][5, 5] = 4
    assert reading.words_of(maps, SIZE, Lexicon()) == []


def boxes(corners, classes=None):
    corners = np.array([[[x, y], [r, y], [r, b], [x, b]] for x, y, r, b in corners], np.float32)
    classes = np.eye(68, dtype=np.float32)[classes] if classes else np.empty((len(corners), 0), np.float32)
    return reading.Boxes(corners, np.linspace(0.9, 0.8, len(corners), dtype=np.float32), classes)


def test_a_character_belongs_to_the_word_it_overlaps_with_most_and_to_the_first_of_equal_ones():
    words = boxes([(0, 0, 10, 10), (8, 0, 18, 10), (0, 30, 10, 40), (0, 30, 10, 40)])
    characters = boxes([(7, 2, 12, 8), (2, 2, 5, 8), (2, 32, 4, 38), (30, 0, 33, 5)], [0, 1, 2, 3])
    assert texts(reading.spell(words, characters)) == ["B", "A", "C"]


def test_characters_at_the_same_place_keep_their_order():
    words = boxes([(0, 0, 100, 10)])
    places = [(50, 2, 60, 8)] * 20 + [(10, 2, 20, 8)]
    characters = boxes(places, list(range(21)))
    assert texts(reading.spell(words, characters)) == ["U" + CHARACTERS[:20]]


LEXICON = Lexicon(["AB", "OPEN", "COFFEE"])


@pytest.mark.parametrize(
    ("text", "score", "expected"),
    [
        ("COFFEE", 0.79, None),  # too doubtful even for a known word
        ("COFFEE", 0.80, "COFFEE"),
        ("XQZ", 0.98, "XQZ"),  # sure
        ("XQZ", 0.97, None),
        ("2023", 0.90, "2023"),  # signs need less
        ("2023", 0.89, None),
        ("COFFXX", 0.9, "COFFEE"),  # two letters of six
        ("OPXN", 0.9, "OPEN"),  # one of four
        ("OXXN", 0.9, None),
        ("AX", 0.9, None),  # none of two
        ("AB", 0.9, "AB"),
        ("OP3N", 0.85, "OPEN"),
    ],
)
def test_doubtful_words_are_those_of_the_lexicon_or_none(text, score, expected):
    checked = reading.check(Word(np.zeros((4, 2)), np.float32(0.9), text, score), LEXICON)
    assert (checked and checked.text) == expected


def test_without_a_lexicon_only_sure_words_are_kept():
    for text, score, kept in (("COFFEE", 0.97, False), ("COFFEE", 0.98, True), ("2023", 0.9, True)):
        checked = reading.check(Word(np.zeros((4, 2)), np.float32(0.9), text, score), Lexicon())
        assert (checked is not None) == kept


def word(text, x, y, w=6, h=4):
    box = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float32)
    return Word(box, np.float32(0.9), text, np.float32(0.99))


def test_surer_words_cover_others_and_ids_name_the_words():
    ids, words = reading.label_map([word("SURE", 0, 0), word("LESS", 4, 0)], (8, 16))
    assert words == ["less", "sure"]
    assert ids[2, 3, 0] == ids[2, 6, 0] == 1
    assert ids[2, 7, 0] == 0
    assert ids[7, 15, 0] == 255


def test_of_more_than_255_words_the_surest_have_ids():
    many = [word(str(i), 8 * (i % 20), 6 * (i // 20)) for i in range(300)]
    ids, words = reading.label_map(many, (100, 170))
    assert len(words) == 255
    assert words[0] == "254"
    assert words[254] == "0"
    assert ids[1, 1, 0] == 254
    assert ids[0, 150, 0] == 254 - 18  # nineteenth in the first row
    assert ids[6 * 13 + 1, 8 * 10 + 1, 0] == 255  # number 270
