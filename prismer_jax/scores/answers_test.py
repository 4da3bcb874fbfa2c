"""Scores of short answers on lists whose values are worked out by hand."""

import pytest

from prismer_jax.scores import answers
from prismer_jax.scores.answers import SCORES, score_records


def records(rows):
    """Returns records of (said, references, type) or more."""
    keys = ("prediction", "references", "type", "blank", "question", "choices")
    return [{"index": n, "type": "", **dict(zip(keys, row, strict=False))} for n, row in enumerate(rows)]


def scored(rows, name, constant="?"):
    return dict(score_records(records(rows), SCORES[name], constant))


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("same", "same", 0), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, distance):
    assert answers.edit_distance(a, b) == answers.edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("said", "references", "value"),
    [
        ("invoice", ["invoice"], 1.0),
        ("invoise", ["invoice", "bill"], 1 - 1 / 7),
        ("in", ["invoice"], 0.0),  # 5 of 7 letters are missing
        ("abcd", ["abxy"], 0.0),  # half of the letters are not less than half
        ("abcde", ["abcxy"], 1 - 2 / 5),
        ("", ["x"], 0.0),
        ("", [""], 1.0),
        ("x", [""], 0.0),
        ("invoice number", ["number"], 0.0),  # 8 of 14
    ],
)
def test_anls(said, references, value):
    assert answers.anls(said, references) == pytest.approx(value)


@pytest.mark.parametrize(
    ("said", "reference", "right"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("106", "100", 0),
        ("0.5", "50%", 1),
        ("51%", "50%", 1),
        ("-10", "-10.2", 1),
        ("0.001", "0", 0),  # within no share of nothing
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("2,000", "2000", 0),  # no number as it is written
        ("blue", "blue", 1),
        ("Blue", "blue", 0),
        ("5", "five", 0),
    ],
)
def test_relaxed_accuracy(said, reference, right):
    assert answers.relaxed(said, [reference]) == right


@pytest.mark.parametrize(
    ("said", "reference", "right"),
    [("three", "3", 1), ("3", "3", 1), ("Twelve", "12", 1), ("none", "0", 1), ("21", "20", 0), ("twenty", "20", 1)],
)
def test_counts(said, reference, right):
    assert answers.count(said, [reference]) == right


def test_counts_by_kind_and_by_number():
    rows = [("3", ["3"], "simple"), ("two", ["3"], "complex"), ("one", ["1"], "complex"), ("1", ["1"], "simple")]
    found = scored(rows, "count", constant="1")
    assert found["accuracy"] == 75.0
    assert (found["accuracy/simple"], found["accuracy/complex"]) == (100.0, 50.0)
    assert (found["accuracy/count_3"], found["accuracy/count_1"]) == (50.0, 100.0)
    assert found["accuracy_most_frequent"] == 50.0


def test_three_annotators_are_enough():
    given = ["a"] * 3 + ["b"] * 2 + ["c"] * 5
    assert [SCORES["agreed"].one(said, {"references": given}) for said in "abcd"] == [1.0, pytest.approx(2 / 3), 1.0, 0]
    assert SCORES["exact"].one("b", {"references": given}) == 1.0
    # The official accuracy leaves each annotator out once: 3 who agree are 0.9, 2 are 0.6.
    assert SCORES["vqa"].one("a", {"references": given}) == pytest.approx(0.9)


def test_yes_and_no_with_precision_recall_and_f1():
    rows = [
        ("yes", ["yes"], "random", "no"),
        ("Yes", ["yes"], "random", "no"),
        ("no", ["yes"], "random", "no"),
        ("yes", ["no"], "random", "no"),
        ("no", ["no"], "popular", "no"),
        ("maybe", ["no"], "popular", "no"),
        ("no", ["no"], "adversarial", "no"),
        ("yes", ["yes"], "adversarial", "no"),
    ]
    found = scored(rows, "yes_no", constant="yes")
    # yes is said 4 times, 3 of them rightly; it is right 4 times, 3 of them found; 'maybe' is wrong and neither.
    assert found["accuracy"] == pytest.approx(100 * 5 / 8)
    assert (found["precision"], found["recall"], found["f1"]) == (75.0, 75.0, 75.0)
    assert (found["yes"], found["valid"]) == (50.0, 87.5)
    assert found["accuracy/random"] == 50.0
    assert found["precision/random"] == pytest.approx(200 / 3)
    assert (found["recall/popular"], found["f1/popular"], found["accuracy/popular"]) == (0.0, 0.0, 50.0)
    assert (found["accuracy_blank"], found["f1_blank"], found["yes_blank"]) == (50.0, 0.0, 0.0)
    assert (found["accuracy_most_frequent"], found["recall_most_frequent"]) == (50.0, 100.0)


def test_yes_and_no_are_the_same_in_any_case():
    assert [SCORES["yes_no"].one(said, {"references": [" Yes"]}) for said in ("yes", "YES ", "no")] == [1.0, 1.0, 0.0]
    rows = [("yes", ["Yes"]), ("No", ["NO"]), ("no", ["Yes"]), ("Yes", ["No"])]
    found = scored(rows, "yes_no", constant="Yes")
    assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (50.0, 50.0, 50.0, 50.0)
    assert (found["accuracy_most_frequent"], found["recall_most_frequent"]) == (50.0, 100.0)


def test_pairs_need_both_answers():
    asked = "Are the eyes open or closed? (a) Open (b) Closed"
    rows = [
        ("(a)", ["(a)"], "", "a", asked),
        ("closed", ["(b)"], "", "a", asked),
        ("A", ["(a)"], "", "a", asked),
        ("Open", ["(b)"], "", "a", asked),
        ("b", ["(b)"], "", "a", asked),  # the other of this pair was left out
    ]
    found = scored(rows, "pairs")
    assert (found["accuracy"], found["pairs"]) == (80.0, 50.0)
    assert (found["accuracy_blank"], found["pairs_blank"]) == (40.0, 0.0)


def test_letters_of_science_qa():
    choices = ["iron", "wood", "glass"]
    rows = [
        ("The answer is B.", ["wood"], "", "the answer is a.", "", choices),
        ("the answer is c. BECAUSE", ["wood"], "", "the answer is a.", "", choices),
        ("wood", ["wood"], "", "the answer is a.", "", choices),
        ("The answer is D.", ["wood"], "", "the answer is a.", "", choices),
        ("B", ["wood"], "", "the answer is a.", "", choices),
    ]
    found = scored(rows, "letter", constant="wood")
    assert (found["accuracy"], found["parsed"]) == (40.0, 60.0)
    assert (found["accuracy_blank"], found["parsed_blank"]) == (0.0, 100.0)
    assert found["accuracy_most_frequent"] == 100.0


def test_every_record_keeps_its_scores_and_a_blank_image_needs_an_answer_to_all():
    rows = records([("a", ["a"], "x"), ("b", ["a"], "x")])
    assert dict(score_records(rows, SCORES["anls"], "a")) == {
        "anls": 50.0,
        "anls/x": 50.0,
        "anls_most_frequent": 100.0,
        "anls_most_frequent/x": 100.0,
    }
    assert [record["scores"] for record in rows] == [
        {"anls": 100.0, "anls_most_frequent": 100.0},
        {"anls": 0.0, "anls_most_frequent": 100.0},
    ]
