"""The forms that captions have beside photos."""

import json

import pytest

from prismer_jax.datasets import captions
from prismer_jax.errors import BadSample

NAN = float("nan")


def beside(text: bytes | None = None, meta: object = None) -> tuple[list[str], str | None]:
    """The captions of a .txt and a .json; `meta` is JSON's bytes or a value, None for no file."""
    files = {".txt": text, ".json": meta if meta is None or isinstance(meta, bytes) else json.dumps(meta).encode()}
    return tuple(captions.beside(files.get, "a"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a dog", ["a dog"]),
        (b"\xef\xbb\xbfa dog \r\n\n  a pet\n", ["a dog", "a pet"]),
        (b"[sic] a dog", ["[sic] a dog"]),
        (b"nan", ["nan"]),
        (b"5", ["5"]),
    ],
)
def test_each_line_of_a_text_is_a_caption(text, expected):
    assert beside(text) == (expected, None)
    assert beside(text, {"caption": "another"}) == (expected, None)
    assert beside(text, b"{") == (expected, None)  # which is not needed


@pytest.mark.parametrize("meta", [b"[" * 100_000, b'{"caption": ' + b"1" * 5_000 + b"}"])
def test_json_that_python_refuses_to_read_is_a_bad_sample(meta):
    with pytest.raises(BadSample, match=r"a\.json: not JSON"):
        beside(None, meta)
    assert beside(b"[a dog]", meta) == (["[a dog]"], None)


def test_lists_in_hundreds_of_lists_are_no_caption():
    nested = b'{"caption": ' + b"[" * 600 + b"]" * 600 + b"}"
    assert beside(None, nested) in [([], captions.NOT_TEXT), ([], None)]  # Python 3.13 follows them to the empty one
    assert beside(b"[a dog]", nested) == (["[a dog]"], None)


@pytest.mark.parametrize(
    ("meta", "expected", "lost"),
    [
        ({"caption": " a dog "}, ["a dog"], None),
        ({"caption": ["a dog", "", None, "a pet"]}, ["a dog", "a pet"], None),
        ({"captions": ["a dog", "a pet"]}, ["a dog", "a pet"], None),
        ({"captions": "a dog"}, ["a dog"], None),
        ({"caption": "a dog", "captions": ["a dog", "a pet"]}, ["a dog", "a pet"], None),
        ({"text": "a dog"}, ["a dog"], None),
        ({"text": ["a dog"], "caption": None}, ["a dog"], None),
        ({"text": "words in the photo", "caption": "a dog"}, ["a dog"], None),
        ("a dog", ["a dog"], None),
        (["a dog", "a pet"], ["a dog", "a pet"], None),
        ({"caption": None}, [], None),
        ({"caption": NAN}, [], None),
        ({"caption": ""}, [], None),
        ({"caption": 5}, [], "caption that is not a text"),
        ({"caption": {"en": "a dog"}}, [], "caption that is not a text"),
        ({"caption": ["a dog", 5]}, ["a dog"], "caption that is not a text"),
        ([1], [], "caption that is not a text"),
        ({"description": "a dog"}, [], "side file without a caption"),
        ({}, [], "side file without a caption"),
        (b" ", [], "empty side file"),
    ],
)
def test_captions_of_json_are_read_or_their_loss_has_a_reason(meta, expected, lost):
    assert beside(None, meta) == (expected, lost)
    assert beside(b"\n", meta) == (expected, lost if expected else "empty side file")


def test_without_side_files_nothing_is_lost():
    assert beside() == ([], None)
    assert beside(b"") == ([], "empty side file")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (["a dog", "it's a pet"], ["a dog", "it's a pet"]),
        (["a dog"], ["a dog"]),
        (NAN, []),
        ("a dog\nby a photographer", ["a dog\nby a photographer"]),
        ("[sic]", ["[sic]"]),
        ("nan", ["nan"]),
    ],
)
def test_what_img2dataset_made_a_text_of_is_taken_from_its_json(caption, expected):
    text = str(caption).encode()  # as its writer does
    assert beside(text, {"url": "http://example.com", "caption": caption}) == (expected, None)


def test_damaged_side_files_are_bad_samples_with_their_reason():
    for text, meta, message, reason in (
        (b"caf\xe9", None, r"a\.txt: not UTF-8", "caption that is not UTF-8"),
        (None, b"caf\xe9", r"a\.json: not UTF-8", "caption that is not UTF-8"),
        (None, b'{"captions": ["\\ud83d"]}', r"a\.json: not UTF-8", "caption that is not UTF-8"),
        (None, b'{"caption": "half', r"a\.json: not JSON", "unreadable side file"),
    ):
        with pytest.raises(BadSample, match=message) as error:
            beside(text, meta)
        assert error.value.reason == reason
    assert beside(None, b'{"alt": "\\ud83d", "caption": "a dog"}') == (["a dog"], None)


LONG = "[" + "1" * 5_000 + "]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['a dog', \"it's a pet\"]", ["a dog", "it's a pet"]),
        ('["a dog", "a \\"pet\\""]', ["a dog", 'a "pet"']),
        ('["a \\u00e9"]', ["a é"]),
        ("['a dog' 'a pet'\n 'a cat']", ["a dog", "a pet", "a cat"]),  # of a NumPy array
        ("['a dog', None, nan]", ["a dog"]),
        ('["a dog", null]', ["a dog"]),
        ("[1, 2.0, 2.5]", ["1", "2", "2.5"]),
        ("['a, b']", ["a, b"]),
        ("[]", []),
        *((text, None) for text in ("a dog", "", "[sic]", "[a dog]", "['a'] and ['b']", "[['a'], ['b']]", "['a', 'b'")),
        *(
            (text, None)
            for text in ("[{'answer': 'a'}]", "[True]", "['a' + 'b']", "['a' ... 'b']", LONG, "[" * 9999 + "]")
        ),
    ],
)
def test_the_text_of_a_list_is_a_list(text, expected):
    assert captions.listed(text) == expected


def test_a_text_of_a_list_without_its_json_is_a_list():
    assert beside(b"['a dog', 'a pet']\n") == (["a dog", "a pet"], None)
    assert beside(b"['a dog', 'a pet']", {"caption": "another"}) == (["a dog", "a pet"], None)
    assert beside(b"[]") == ([], "empty side file")
    with pytest.raises(BadSample, match="not UTF-8"):
        beside(rb"['half a character, \ud83d']")
