"""Short answers of a model whose answers are known, scored with and without regard to case."""

import pytest

from prismer_jax.evaluators.evaluators_test import COLORS, VARIABLES, made

CAPITALS = [color.capitalize() for color in COLORS]


@pytest.mark.parametrize("lower", [False, True])
def test_a_letter_means_its_choice_in_any_case(monkeypatch, lower):
    source = [
        {"id": str(i), "value": 4, "question": "what", "choices": CAPITALS, "answers": ["Green"]} for i in range(4)
    ]
    evaluator = made("answers", source, score="letter", lower=lower)
    monkeypatch.setattr(evaluator, "say", lambda variables, batch: ["The answer is B."] * evaluator.batch_size)
    values = dict(evaluator.run(VARIABLES))
    assert (values["accuracy"], values["accuracy_blank"], values["parsed"]) == (100.0, 100.0, 100.0)
    assert values["accuracy_most_frequent"] == 100.0


@pytest.mark.parametrize(("lower", "accuracy"), [(False, 0.0), (True, 100.0)])
def test_case_counts_unless_it_is_said_otherwise(monkeypatch, lower, accuracy):
    source = [{"id": str(i), "value": 4, "question": "what", "answers": ["GREEN"]} for i in range(4)]
    evaluator = made("answers", source, lower=lower)
    monkeypatch.setattr(evaluator, "say", lambda variables, batch: ["Green"] * evaluator.batch_size)
    assert dict(evaluator.run(VARIABLES))["accuracy"] == accuracy
