import json
import shutil

import pytest

from prismer_jax.errors import UserError
from prismer_jax.evaluators import evaluators_test as toy
from prismer_jax.evaluators.scores import jars
from prismer_jax.evaluators.scores.caption import caption_metrics
from prismer_jax.evaluators.scores.result_files import read_results
from prismer_jax.evaluators.scores.vqa import vqa_metrics


def write(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_reads_texts_of_any_script_and_empty_ones(tmp_path):
    entries = [{"image_id": 7, "caption": "café 北京 😀"}, {"image_id": "x", "caption": ""}]
    assert read_results(write(tmp_path / "r.json", entries), "image_id", "caption") == {7: "café 北京 😀", "x": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_id": 1}, "results are a list"),
        ([{"caption": "a"}], 'has no "image_id"'),
        ([{"image_id": 1, "caption": None}], "image_id 1 has no text"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "a"}], "image_id 1 occurs twice"),
    ],
)
def test_what_is_no_result_file_is_one_line_that_names_it(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_results(write(tmp_path / "r.json", content), "image_id", "caption")
    assert "r.json" in str(error.value)


def test_a_missing_result_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no\.json: not a JSON file"):
        read_results(tmp_path / "no.json", "image_id", "caption")


# Of each question: prediction, question type, answer type, and how often which answer was given.
QUESTIONS = [
    ("donut", "what is", "other", {"donut": 6, "bagel": 4}),
    ("The 2 dogs.", "how many", "number", {"two dogs": 3, "2 dogs": 1, "2 dog": 1, "two": 5}),
    ("dont know", "is the", "other", {"don't know": 2, "yes": 8}),
    ("black / white", "what is", "other", {"black and white": 7, "black white": 1, "black / white": 1, "white": 1}),
    ("", "is the", "yes/no", {"yes": 10}),
    ("naïve café", "what is", "other", {"Naïve café": 2, "cafe": 8}),
    ("1,000", "how many", "number", {"1000": 4, "1,000": 6}),
    ("yes", "is the", "yes/no", {"yes": 10}),
]
PREDICTIONS = {i: said for i, (said, *_) in enumerate(QUESTIONS)}
ANNOTATIONS = [
    {
        "question_id": i,
        "question_type": kind,
        "answer_type": sort,
        "answers": [{"answer": text} for text, count in answers.items() for _ in range(count)],
    }
    for i, (_, kind, sort, answers) in enumerate(QUESTIONS)
]


def test_accuracies_are_those_of_the_official_script_overall_and_by_type():
    # Printed by VQAEval of GT-Vision-Lab/VQA a013f00 (PythonEvaluationTools) for these questions.
    expected = {
        "accuracy": 72.5,
        "accuracy/what is": 220 / 3,
        "accuracy/how many": 100.0,
        "accuracy/is the": 160 / 3,
        "accuracy/other": 70.0,
        "accuracy/number": 100.0,
        "accuracy/yes/no": 50.0,
    }
    assert vqa_metrics(PREDICTIONS, ANNOTATIONS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predictions", "annotations", "message"),
    [
        ({0: "a"}, ANNOTATIONS[:2], "1 of 2 ids have no prediction, such as 1"),
        ({0: "a", 9: "b"}, ANNOTATIONS[:1], "without references, such as 9"),
        ({0: "a"}, ANNOTATIONS[:1] * 2, "1 question ids occur more than once"),
        ({0: 2}, ANNOTATIONS[:1], "question 0 is no text but 2"),
        ({0: "a"}, [{"question_id": 0, "answers": []}], "without answers"),
        ({}, [], "Nothing to score"),
    ],
)
def test_answers_that_do_not_fit_their_annotations_are_an_error(predictions, annotations, message):
    with pytest.raises(UserError, match=message):
        vqa_metrics(predictions, annotations)


@pytest.mark.parametrize(("prediction", "captions"), [(None, ["a"]), ("a", "a dog"), ("a", ["a", 3])])
def test_captions_that_are_no_texts_are_an_error(prediction, captions):
    with pytest.raises(UserError, match="Image 1: a prediction is one text"):
        caption_metrics({1: prediction}, {1: captions})


def test_captions_are_scored_by_domain_too():
    source = [dict(example, domain=("in-domain", "out-domain")[i % 2]) for i, example in enumerate(toy.captioned())]
    evaluator = toy.made("caption", source)
    values = dict(evaluator.run(toy.VARIABLES))
    references = {i + 1: example["captions"] for i, example in enumerate(source)}
    said = {p["image_id"]: p["caption"] for p in evaluator.predictions}
    for start, domain in ((1, "in-domain"), (2, "out-domain")):
        ids = range(start, 11, 2)
        for name, value in caption_metrics({i: said[i] for i in ids}, {i: references[i] for i in ids}).items():
            assert values[f"{name}/{domain}"] == pytest.approx(value)
    assert "cider_blank/in-domain" in values


def test_answers_are_scored_by_answer_type_too():
    source = [dict(example, answer_type="other" if example["value"] == 4 else "number") for example in toy.asked()]
    values = dict(toy.made("vqa", source).run(toy.VARIABLES))
    assert (values["accuracy/other"], values["accuracy/number"]) == (100.0, 0.0)
    assert values["accuracy/what"] == pytest.approx(40.0)


def test_a_test_sets_submission_has_every_question_once():
    hidden = [{k: v for k, v in example.items() if k not in ("answers", "question_type")} for example in toy.asked(11)]
    evaluator = toy.made("vqa", hidden)
    assert list(evaluator.run(toy.VARIABLES)) == []
    assert [p["question_id"] for p in evaluator.predictions] == list(range(100, 111))
    assert all(p.keys() == {"question_id", "answer"} and isinstance(p["answer"], str) for p in evaluator.predictions)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(("metor",), "Did you mean 'meteor'"), (("meteor",), "METEOR needs Java"), (("spice",), "SPICE")],
)
def test_a_metric_that_cannot_be_computed_is_told_before_captions_are_made(monkeypatch, metrics, message):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=message):
        toy.made("caption", toy.captioned(), metrics=metrics)


def test_without_pycocoevalcap_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(jars.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="METEOR needs the extra `eval`: pip install pycocoevalcap"):
        jars.check(["meteor"])


def test_a_program_that_fails_is_one_line(monkeypatch):
    def fails():
        raise OSError("no route to host")

    monkeypatch.setattr(jars, "check", lambda names: None)
    monkeypatch.setitem(jars.JARS, "spice", fails)
    with pytest.raises(UserError, match=r"SPICE: the official program failed.*no route.*is there a network"):
        caption_metrics({1: "a"}, {1: ["a"]}, ["spice"])
