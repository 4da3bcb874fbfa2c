"""Letters in answers, and accuracy beside what knows no photo."""

import json

import pytest

from prismer_jax.scores.choice import first_letter, mentions, score_choices


def test_answers_match_as_in_the_original(shared):
    texts = json.loads((shared / "golden/nanovlm_v01_tiny/manifest.json").read_text())["texts"]
    assert len(texts["multiple_choice_regex"]) >= 5
    for said, letter, right in texts["multiple_choice_regex"]:
        assert mentions(said, letter) == right, said


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        *[("B", "B"), (" b", "B"), ("(C)", "C"), ("A: a cat", "A"), ("D.\nDog", "D"), ("A\nB", "A"), ("**B**", "B")],
        *[("A cat", None), ("ABC", None), ("The answer is B", None), ("", None)],
    ],
)
def test_an_answer_begins_with_its_letter(said, letter):
    assert first_letter(said) == letter


def test_accuracy_stands_beside_chance_the_blank_image_and_the_most_frequent_letter():
    rows = [("B", "A", "B", "x"), ("A", "A", "A", "x"), ("C", "B", "A", "y"), ("", "B", "B", "y")]
    records = [
        {"prediction": said, "blank": blank, "references": [right], "letters": letters, "type": kind}
        for (said, blank, right, kind), letters in zip(rows, ("AB", "ABCD", "ABCD", "AB"), strict=True)
    ]
    scores = dict(score_choices(records, "B", lambda said, record: first_letter(said) in record["references"]))
    assert (scores["accuracy"], scores["accuracy/x"], scores["accuracy/y"]) == (50, 100, 0)
    assert (scores["accuracy_blank"], scores["accuracy_most_frequent"], scores["accuracy_chance"]) == (50, 50, 37.5)
    assert scores["accuracy_chance/y"] == 37.5
