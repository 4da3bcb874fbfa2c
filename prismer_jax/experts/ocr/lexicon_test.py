import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismer_jax.errors import UserError
from prismer_jax.experts.ocr.lexicon import REACH, Lexicon


def distance(a, b):
    """Levenshtein's distance, by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        new = [i]
        for j, y in enumerate(b, start=1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


WORDS = st.text("ABC'É", max_size=7)


@given(st.lists(WORDS, max_size=20), WORDS)
def test_the_nearest_is_the_first_of_those_with_the_least_edits(words, text):
    words = [word for word in words if word]
    distances = [distance(text, word) for word in words]
    least = min(distances, default=REACH + 1)
    expected = (words[distances.index(least)], least) if least <= REACH else None
    assert Lexicon(words).nearest(text) == expected


def test_case_does_not_count_and_a_known_text_stays_as_it_is():
    lexicon = Lexicon(["Coffee", "hotel"])
    assert lexicon.nearest("HOTEL") == ("HOTEL", 0)
    assert lexicon.nearest("COFFXE") == ("Coffee", 1)
    assert lexicon.nearest("HOTELIER") is None
    assert Lexicon().nearest("HOTEL") is None
    assert Lexicon(["A" * 40]).nearest("") is None


def test_letters_that_share_a_bit_hide_no_word():
    # 'A' and '\x01' are the same of 64 bits.
    assert Lexicon(["AB"]).nearest("\x01B") == ("AB", 1)


def test_a_file_has_one_word_a_line_and_comments(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("#a comment\nONE \n\nTWO\n")
    assert Lexicon.read(path).words == ["ONE", "TWO"]
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        Lexicon.read(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as a list of words"):
        Lexicon.read(path)


def test_the_official_lexicon_is_searched_as_by_hand(shared):
    lexicon = Lexicon.read(shared / "data/ocr/GenericVocabulary.txt")
    assert len(lexicon) == 87_623
    assert lexicon.nearest("COFFXE") == ("COFFEE", 1)
    some = Lexicon(lexicon.words[::20])
    rng = np.random.default_rng(0)
    for word in rng.choice(some.words, 4):
        text = list(word)
        text[rng.integers(len(text))] = rng.choice(list(string.ascii_uppercase))
        text = "".join(text)
        least, first = min((distance(text, other), i) for i, other in enumerate(some.words))
        assert some.nearest(text) == (text if least == 0 else some.words[first], least)
