"""Multiple choice with a small converted nanoVLM, whose photos are of different numbers of tiles."""

import json

import numpy as np
import pytest
from PIL import Image

from prismer_jax import config, datasets, evaluate, evaluators, models, pp
from prismer_jax.caption_prompt_test import converted
from prismer_jax.checkpoint import load_export
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("nanovlm"))


@pytest.fixture
def questions(tmp_path):
    rows = []
    for number, size in enumerate([(20, 20), (40, 90), (33, 33)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p{number}.png")
        asked = dict(question="Which?", choices=["x", "y", "z"][: 2 + number % 2], category=f"c{number % 2}")
        rows.append({**asked, "answer": "B" if number else "A", "image": f"p{number}.png"})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "list.jsonl"


def evaluator(model, questions, **options):
    variables, cfg = load_export(model)
    tokenizer = pp.tokenizer.load_from(cfg["folder"], cfg["tokenizer"])
    chain = pp.build("labels_for('none')|decode|tiles(32, 96)|ask()|chat(140, 4)", tokenizer=tokenizer)
    source = datasets.load("choices", path=questions)
    made = evaluators.build(
        "choice", model=models.build(**cfg["model"]), tokenizer=tokenizer, source=source, pp=chain, batch_size=2,
        quiet=True, **options,
    )  # fmt: skip
    return made, variables


def test_the_likeliest_letter_of_a_question_is_one_of_its_own(model, questions):
    made, variables = evaluator(model, questions, method="rank")
    scores = dict(made.run(variables))
    assert scores.keys() >= {"accuracy", "accuracy_blank", "accuracy_most_frequent", "accuracy_chance", "accuracy/c1"}
    assert scores["accuracy_most_frequent"] == pytest.approx(200 / 3)
    assert scores["accuracy_chance"] == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 2) / 3)
    for record in made.records:
        assert sorted(record["prediction"]) == sorted("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        letter = next(i for i in record["prediction"] if i in record["letters"])
        assert record["scores"]["accuracy"] == 100 * (letter in record["references"])
        assert {"question_id": record["id"], "answer": letter} in made.predictions


def test_letters_of_which_none_is_of_the_question_are_wrong(model, questions):
    made, _ = evaluator(model, questions, method="rank", k=2)
    assert not made.is_right("ZY", {"letters": "AB", "references": ["A"]})


def test_a_blank_image_has_as_many_tiles_as_its_prompt_has_room_for(model, questions):
    """In whatever batch it is asked: the first example's number of tiles is not everyone's."""
    made, variables = evaluator(model, questions, method="greedy")
    dict(made.run(variables))
    blanks = {record["id"]: record["blank"] for record in made.records}
    rows = questions.read_text().splitlines()
    questions.write_text("\n".join(rows[::-1]))
    made, variables = evaluator(model, questions, method="greedy")
    dict(made.run(variables))
    assert blanks == {2 - record["id"]: record["blank"] for record in made.records}


def test_the_transfer_asks_a_converted_model(model, questions, tmp_path):
    scores = {}
    for method in ("reference", "greedy"):
        cfg = config.load(f"{ROOT}/transfers/mmstar.py:model={model},data={questions},method={method}", [])
        scores[method] = evaluate.evaluate(cfg, model, tmp_path / method)
        assert cfg.evals.mmstar.pp.count("Answer only with the letter!") == 1
    assert scores["greedy"]["mmstar/accuracy_chance"] == scores["reference"]["mmstar/accuracy_chance"]
    rows = json.loads((tmp_path / "greedy/predictions/mmstar.json").read_text())
    assert [row["question_id"] for row in rows] == [0, 1, 2]


def test_unknown_methods_and_options_are_refused(model, questions):
    for options, message in ((dict(method="grredy"), "Did you mean 'greedy'"), (dict(num_beam=2), "num_beam")):
        with pytest.raises(UserError, match=message):
            evaluator(model, questions, **options)
    with pytest.raises(UserError, match="Did you mean 'choice'"):
        evaluators.build("choise")
