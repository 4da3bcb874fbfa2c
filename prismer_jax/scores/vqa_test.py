import pytest

from prismer_jax.errors import UserError
from prismer_jax.scores.vqa import CONTRACTIONS, accuracy, normalize

# Right sides printed by the official script's processPunctuation and processDigitArticle.
NORMALIZED = {
    "The Cat.": "cat",
    "two": "2",
    "none": "0",
    "black/white": "black white",
    "black / white": "black white",
    "t-shirt": "t shirt",
    "t-shirt - red": "tshirt red",
    "3.5": "3.5",
    "1,000": "1000",
    "1,000 dogs/cats": "1000 dogscats",
    "dont": "don't",
    "couldntve": "couldntve",
    "couldnt've": "couldn't've",
    "somebody'd": "somebodyd",
    "oclock": "o'clock",
    "5:30": "5:30",
    "p.m.": "pm",
    "a": "",
    "." * 40: "." * 8,
    '"hi"!': "hi",
}


@pytest.mark.parametrize("answer", NORMALIZED)
def test_normalises_like_the_official_script(answer):
    assert normalize(answer) == NORMALIZED[answer]


def test_every_contraction_of_the_official_table_that_lower_case_text_can_reach():
    assert len(CONTRACTIONS) == 114


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_leave_one_out_average_of_ten_annotators(agree, expected):
    assert accuracy("red", ["red"] * agree + ["blue"] * (10 - agree)) == pytest.approx(expected)


def test_normalises_only_where_annotators_disagree():
    assert accuracy("The 2 dogs", ["two dogs"] * 9 + ["dogs"]) == 1.0
    assert accuracy("The 2 dogs", ["two dogs"] * 10) == 0.0
    assert accuracy(" two dogs\n", ["two dogs"] * 10) == 1.0


@pytest.mark.parametrize(
    ("answers", "expected"), [(["a b"], 1.0), (["x"], 0.0), (["a b", "x"], 1.0), (["a b"] * 3, 1.0)]
)
def test_fewer_answers_count_as_ten_in_the_same_proportion(answers, expected):
    assert accuracy("a b", answers) == pytest.approx(expected)


def test_a_question_without_answers_is_an_error():
    with pytest.raises(UserError, match="without answers"):
        accuracy("yes", [])
