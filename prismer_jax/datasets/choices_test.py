"""Lists of multiple-choice questions: options in the text or beside it, answers as letters or indices."""

import json

import pytest

from prismer_jax import datasets
from prismer_jax.errors import UserError

GOOD = {"question": "Who? Options: A: me, B: you", "answer": "B", "category": "people", "index": 7}


def load(folder, *entries, **options):
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return datasets.load("choices", path=path, **options)


def test_options_are_listed_in_the_text_or_beside_it(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    science = {"question": "Which?", "choices": ["x", "y", "z"], "answer": 2, "subject": "s", "image": "a.png"}
    source = load(tmp_path, GOOD, science, {**science, "answer": "(a)", "image": ["a.png", "a.png"]})
    assert load(tmp_path, {**science, "answer": 2.0})[0]["answers"] == ["C"]  # of a column with gaps
    first, second, third = (source[i] for i in range(3))
    assert (first["id"], first["letters"], first["answers"], first["image"]) == ("7", "AB", ["B"], None)
    assert first["question_type"] == "people"
    assert second["question"] == "Which?\nA. x\nB. y\nC. z"
    assert (second["letters"], second["answers"], second["question_type"]) == ("ABC", ["C"], "s")
    assert second["image"] == str(tmp_path / "a.png")
    assert (third["answers"], len(third["image"])) == (["A"], 2)
    assert len(load(tmp_path, GOOD, science, limit=1)) == 1
    assert load(tmp_path, {**GOOD, "image": "", "choices": []})[0]["image"] is None
    assert load(tmp_path, {**GOOD, "id": "", "index": float("nan")})[0]["id"] == "0"


def test_options_that_a_table_has_no_text_for_are_none(tmp_path):
    empty = float("nan")  # as tables of four columns have it where a question has two options
    asked = {"question": "Is it?", "choices": ["yes", "no", empty, None], "answer": "B"}
    example = load(tmp_path, asked)[0]
    assert (example["question"], example["letters"]) == ("Is it?\nA. yes\nB. no", "AB")
    assert (example["choices"], example["answers"]) == (["yes", "no"], ["B"])
    with pytest.raises(UserError, match="has the answer 'C', which is none of its choices AB"):
        load(tmp_path, {**asked, "answer": "C"})


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert len(datasets.load("choices", path=path)) == 1


def test_a_question_that_lists_none_has_the_letters_that_are_given(tmp_path):
    assert load(tmp_path, {"question": "A or C?", "answer": "C"}, letters="ABCD")[0]["letters"] == "ABCD"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "C"}, r"question 1 has the answer 'C', which is none of its choices AB"),
        ({"answer": 2}, "has the answer 2"),
        ({"answer": None}, "has the answer None"),
        ({"question": "Who?"}, "has no `choices`, and its text lists none"),
        ({"choices": ["one"]}, "as choices, which is no list of 2 to 26 texts"),
        *(({"choices": c}, "no list of 2 to 26 texts") for c in (["one", None], ["one", None, "two"], [{}, {}])),
        ({"choices": [1, 2, 3], "answer": 2}, "its answer 2 may be one of the choices"),
        ({"question": " "}, "no text `question`"),
        ({"image": "none.png"}, r"none\.png, which is not there"),
        ({"image": ["."]}, "which is not there"),
        *(({"image": image}, "as its photo, which is no path") for image in (5, [5], {"bytes": "", "path": "a.png"})),
    ],
)
def test_what_cannot_be_asked_is_counted_or_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=f"1 of 1 questions cannot be used: .*{message}"):
        load(tmp_path, {**GOOD, **changes})
    source = load(tmp_path, {**GOOD, **changes}, *[GOOD] * 3)
    assert (len(source), source.dropped.total) == (3, 1)


def test_lists_that_are_none_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        datasets.load("choices", path=tmp_path / "none.jsonl")
    for text in ("{", "[" * 100_000):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(UserError, match="neither JSON lines nor a JSON list"):
            datasets.load("choices", path=tmp_path / "list.json")
