"""Files of predictions, scored without a model."""

import json
import subprocess
import sys

import numpy as np
import pytest

from prismer_jax import compare, evaluate, scoring
from prismer_jax.errors import UserError
from prismer_jax.report import evaluation
from prismer_jax.scores.caption_test import our_scores
from prismer_jax.scores.ptb import tokenize_all

COCO = {
    "images": [{"id": i, "file_name": f"val/{i}.jpg"} for i in (7, 42, 100)],
    "annotations": [
        {"image_id": 7, "caption": "A dog runs on grass."},
        {"image_id": 7, "caption": "A brown dog"},
        {"image_id": 42, "caption": "Two men on bikes"},
        {"image_id": 100, "caption": "A cat sleeps on a sofa"},
    ],
}
TEXTS = {7: "a dog on the grass", 42: "two men ride bikes", 100: "a cat"}
OFFICIAL = [{"image_id": i, "caption": text} for i, text in TEXTS.items()]


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def score(tmp_path, predictions, references, *flags, name="p.json"):
    """Runs the command; returns what metrics.json holds."""
    files = write(tmp_path / name, predictions), write(tmp_path / "references.json", references)
    out = tmp_path / "out"
    evaluate.main(["--score", str(files[0]), "--references", str(files[1]), "--output", str(out), *map(str, flags)])
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def expected(tmp_path):
    """The scores of TEXTS by the functions that are compared with pycocoevalcap."""
    references = [["A dog runs on grass.", "A brown dog"], ["Two men on bikes"], ["A cat sleeps on a sofa"]]
    return our_scores(tokenize_all([*TEXTS.values()]), [tokenize_all(texts) for texts in references])


@pytest.mark.parametrize(
    "predictions",
    [
        OFFICIAL,
        OFFICIAL[::-1],
        lines(OFFICIAL),
        "\ufeff" + json.dumps(OFFICIAL),
        [{"image_id": str(i), "caption": text} for i, text in TEXTS.items()],
        [{"image_id": f"{i}.jpg", "caption": text} for i, text in TEXTS.items()],
        [{"image": f"val/{i}.jpg", "captions": [text, "no"], "scores": [-1, -2]} for i, text in TEXTS.items()],
        [{"image": f"{i}.jpg", "captions": [text]} for i, text in TEXTS.items()],
        [{"image": f"/data/coco/./val/{i}.jpg", "captions": [text]} for i, text in TEXTS.items()],
    ],
    ids=["official", "reversed", "lines", "BOM", "text ids", "names as ids", "own", "names alone", "long paths"],
)
def test_captions_are_scored_whatever_the_form_of_the_file(tmp_path, predictions, expected):
    record = score(tmp_path, predictions, COCO)
    names = ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
    np.testing.assert_allclose([record["metrics"][f"caption/{name}"] for name in names], expected, rtol=1e-9)
    assert json.loads((tmp_path / "out/predictions/caption.json").read_text()) == OFFICIAL
    samples = [json.loads(line) for line in (tmp_path / "out/samples/caption.jsonl").open()]
    assert [(s["id"], s["prediction"]) for s in samples] == [*TEXTS.items()]
    assert np.mean([s["scores"]["cider"] for s in samples]) == pytest.approx(record["metrics"]["caption/cider"])
    assert "two men ride bikes" in (tmp_path / "out/report.html").read_text()


def test_captions_score_as_pycocoevalcap_says(tmp_path, shared):
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="needs the extra `test`")
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    path = sorted((shared / "data").glob("captions/*/captions_*.json"))[0]
    content, texts = json.loads(path.read_text()), {}
    for annotation in content["annotations"]:
        texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
    predictions = [{"image_id": i, "caption": said[0][: 10 + n % 30]} for n, (i, said) in enumerate(texts.items())]
    record = score(tmp_path, predictions, content)
    targets = {i: [" ".join(tokens) for tokens in tokenize_all(captions)] for i, captions in texts.items()}
    said = tokenize_all([p["caption"] for p in predictions])
    guesses = {i: [" ".join(tokens)] for i, tokens in zip(texts, said, strict=True)}
    for name, value in (
        ("cider", cider.Cider().compute_score(targets, guesses)[0]),
        ("bleu4", bleu.Bleu(4).compute_score(targets, guesses, verbose=0)[0][3]),
    ):
        assert record["metrics"][f"caption/{name}"] == pytest.approx(value, abs=1e-6)


def test_domains_are_scored_by_themselves(tmp_path):
    content = json.loads(json.dumps(COCO))
    for image, domain in zip(content["images"], ("in-domain", "in-domain", "out-domain"), strict=True):
        image["domain"] = domain
    assert "caption/cider/in-domain" in score(tmp_path, OFFICIAL, content)["metrics"]


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

FILE = {
    "data_subtype": "val2014",
    "questions": [{"question_id": i, "image_id": i // 2, "question": f"what is {i}"} for i in PREDICTIONS],
}
ANSWERED = [{"question_id": i, "answer": text} for i, text in PREDICTIONS.items()]


@pytest.mark.parametrize(
    "predictions",
    [
        ANSWERED,
        [{"question_id": str(i), "answer": text} for i, text in PREDICTIONS.items()],
        [
            {"image": f"COCO_val2014_{i // 2:012d}.jpg", "question": f"what is {i}", "answers": [text], "scores": [0.5]}
            for i, text in PREDICTIONS.items()
        ],
    ],
    ids=["official", "text ids", "own"],
)
def test_accuracies_are_those_of_the_official_script_overall_and_by_type(tmp_path, predictions):
    answers = write(tmp_path / "annotations.json", {"annotations": ANNOTATIONS})
    record = score(tmp_path, predictions, FILE, "--annotations", answers)
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
    values = {name: value for name, value in record["metrics"].items() if "most_frequent" not in name}
    assert values == pytest.approx({f"vqa/{name}": value for name, value in expected.items()})
    written = json.loads((tmp_path / "out/predictions/vqa.json").read_text())
    assert written == ANSWERED  # ids are numbers, as the questions have them


def test_answers_of_a_list_and_numbers_as_answers(tmp_path):
    rows = [{"image": "a.jpg", "question": q, "answer": a, "question_id": i} for i, (q, a) in enumerate(["a2", "bx"])]
    for answer in (2, 2.0, [2.0]):
        said = [{"question_id": 0.0, "answer": answer}, {"question_id": 1, "answer": "y"}]
        assert score(tmp_path, said, rows)["metrics"]["vqa/accuracy"] == 50.0


def test_classes_and_choices(tmp_path):
    rows = [{"image": f"{i}.jpg", "class_name": name} for i, name in enumerate(["cat", "Great Auk", "dog"])]
    said = [{"image": "0.jpg", "choices": ["cat", "dog"]}, {"image": "1.jpg", "choices": ["Great Auk"]}]
    said.append({"image": "2.jpg", "choices": ["cat", "dog"]})
    assert score(tmp_path, said, rows)["metrics"]["choice/accuracy"] == pytest.approx(200 / 3)
    rows = [{"image": f"{i}.jpg", "question": "which", "answer": "red", "question_id": i} for i in range(2)]
    said = [{"image": f"{i}.jpg", "question": "which", "choices": [c, "x"]} for i, c in enumerate(["red", "blue"])]
    assert score(tmp_path, said, rows)["metrics"]["choice/accuracy"] == 50.0
    said = [{"question_id": i, "answer": "red"} for i in range(2)]
    assert score(tmp_path, said, rows, "--task", "choice")["metrics"]["choice/accuracy"] == 100.0


def test_answers_are_scored_as_their_benchmark_does(tmp_path):
    """ANLS of 'kitte' beside 'kitten' is 5/6; relaxed accuracy lets a number be wrong by 5 %."""
    rows = [{"image": f"{i}.jpg", "question": "q", "answers": [text], "question_id": i} for i, text in enumerate("ab")]
    rows[0]["answers"], rows[1]["answers"] = ["kitten"], ["100"]
    said = [{"question_id": 0, "answer": "kitte"}, {"question_id": 1, "answer": "104"}]
    found = score(tmp_path, said, rows, "--answers", "anls")["metrics"]
    assert found["vqa/anls"] == pytest.approx(100 * (5 / 6 + 2 / 3) / 2)
    assert score(tmp_path, said, rows, "--answers", "relaxed")["metrics"]["vqa/relaxed_accuracy"] == 50.0
    with pytest.raises(UserError, match=r"anls is a score of answers, and .*p\.json has captions"):
        score(tmp_path, OFFICIAL, COCO, "--answers", "anls")


def test_what_finds_no_partner_is_named_and_counted(tmp_path, caplog):
    said = [*OFFICIAL[:2], {"image_id": 5, "caption": "who"}, {"image_id": 100, "caption": None}]
    record = score(tmp_path, said, COCO, "--max-unmatched", 0.5)
    assert record["metrics"]["caption/unscored"] == 1
    counts = {reason: entry["count"] for reason, entry in record["not_scored"].items()}
    assert counts == {
        "prediction without reference": 1,
        "prediction without a text": 1,
        "reference without prediction": 1,
    }
    assert '1 x prediction without reference, the first: entry 3 of p.json, {"image_id": 5}' in caplog.text
    assert "reference without prediction, the first: 100 (val/100.jpg)" in caplog.text
    assert record["evaluators"]["caption"]["samples"] == 2


def test_zeros_in_front_are_another_id(tmp_path):
    rows = [{"image": f"{i}.jpg", "image_id": i, "caption": f"number {i}"} for i in ("01827492", "1827492")]
    said = [{"image_id": row["image_id"], "caption": row["caption"]} for row in rows]
    score(tmp_path, said, rows)
    samples = [json.loads(line) for line in (tmp_path / "out/samples/caption.jsonl").open()]
    assert [(s["id"], s["prediction"]) for s in samples] == [
        ("01827492", "number 01827492"),
        (1827492, "number 1827492"),
    ]
    with pytest.raises(UserError, match="entry 2 is a second prediction"):
        score(tmp_path, [{"image_id": 1827492, "caption": "a"}, {"image_id": "1827492", "caption": "a"}], rows)


def test_two_photos_of_one_name_are_not_mixed_up(tmp_path):
    rows = [{"image": f"{folder}/1.jpg", "caption": folder} for folder in ("a", "b")]
    said = [{"image": f"{folder}/1.jpg", "captions": [folder]} for folder in ("b", "a")]
    score(tmp_path, said, rows)
    samples = [json.loads(line) for line in (tmp_path / "out/samples/caption.jsonl").open()]
    assert [s["prediction"] for s in samples] == ["a", "b"]
    for image in ("1.jpg", "c/1.jpg"):
        with pytest.raises(UserError, match="none of its predictions has a reference"):
            score(tmp_path, [{"image": image, "caption": "a"}], rows)


@pytest.mark.parametrize(
    ("predictions", "references", "flags", "message"),
    [
        ([*OFFICIAL, OFFICIAL[0]], COCO, [], r"p\.json: entry 4 is a second prediction of 7 \(val/7.jpg\), after .*7"),
        (OFFICIAL[:2], COCO, [], "1 of 3 references have no prediction: .*100.*--max-unmatched"),
        ([*OFFICIAL, {"image_id": 5, "caption": ""}], COCO, [], "1 of 4 predictions have no text or no reference: .*5"),
        ([{"image_id": 5, "caption": "a"}], COCO, ["--max-unmatched", 1], "none of its predictions has a reference"),
        ([{"image_id": 7, "caption": None}], COCO, ["--max-unmatched", 1], "none of its .* without a text"),
        ([{"image_id": 7, "caption": float("nan")}], COCO, [], "none of its .* without a text"),
        (OFFICIAL, {"images": COCO["images"], "annotations": []}, [], "has no captions, so nothing can be scored"),
        (ANSWERED, FILE, [], "has no answers, so nothing can be scored. Give the file of answers with --annotations"),
        ([], COCO, [], "has no predictions"),
        ({"a": 1}, COCO, [], "is not a list of objects: predictions are a list of"),
        ([1], COCO, [], "is not a list of objects"),
        ("[1\n", COCO, [], "line 1 is not JSON"),
        ("[" * 100_000, COCO, [], "line 1 is not JSON"),
        ("[" + "1" * 5_000 + "]", COCO, [], "line 1 is not JSON"),
        (json.dumps([{"image_id": 5, "caption": "\ud800"}]), COCO, [], r"entry 1 cannot be stored as UTF-8"),
        (json.dumps([*OFFICIAL, {"image_id": "\ud800"}]), COCO, [], r"entry 4 cannot be stored as UTF-8"),
        (OFFICIAL, "[" * 100_000, [], r"references\.json: cannot be read as JSON"),
        ([{"image_id": 7}], COCO, [], "has no texts but image_id"),
        (ANSWERED, COCO, ["--metrics", "meteor"], "meteor"),
    ],
)
def test_files_that_do_not_fit_are_one_line(tmp_path, predictions, references, flags, message):
    with pytest.raises(UserError, match=message) as error:
        score(tmp_path, predictions, references, *flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_references_that_are_not_utf8_are_left_out_and_counted(tmp_path, caplog):
    bad = "\ud800"
    rows = [{"image": "1.jpg", "image_id": 1, "captions": ["a dog", bad]}, {"image": f"{bad}.jpg", "caption": "a cat"}]
    score(tmp_path, [{"image_id": 1, "caption": "a dog"}], json.dumps(rows))
    assert "1 x caption that is not UTF-8, the first: '1.jpg'" in caplog.text
    assert "1 x entry that is not UTF-8" in caplog.text
    assert json.loads((tmp_path / "out/samples/caption.jsonl").read_text())["references"] == ["a dog"]
    asked = [{"image": f"{i}.jpg", "question": "q", "question_id": i, "answer": a} for i, a in enumerate(["a", bad])]
    score(tmp_path, [{"question_id": 0, "answer": "a"}], json.dumps(asked))
    assert "1 x question that is not UTF-8" in caplog.text


def test_ids_of_thousands_of_digits_stay_texts(tmp_path):
    long = "1" * 5_000
    score(tmp_path, [{"image_id": long, "caption": "a"}], [{"image": "1.jpg", "image_id": long, "caption": "a"}])


def test_an_id_of_two_photos_is_an_error(tmp_path):
    rows = [{"image": f"{i}.jpg", "question": "q", "answer": "a", "question_id": 1} for i in range(2)]
    with pytest.raises(
        UserError, match=r"the id 1 is of 1 \(0.jpg, 'q'\) and of 1.jpg, 'q'. To be scored by, ids must"
    ):
        score(tmp_path, [{"question_id": 1, "answer": "a"}], rows)


def test_results_can_be_compared(tmp_path):
    score(tmp_path / "a", OFFICIAL, COCO)
    score(tmp_path / "b", [{**entry, "caption": "a cat"} for entry in OFFICIAL], COCO)
    table = compare.compare([tmp_path / "a/out", tmp_path / "b/out"], tmp_path / "both")
    assert table["metrics"]["caption/cider"]["differences"][0] < 0


def scored(tmp_path, name, model, value=1.0):
    """Leaves results of an evaluator in tmp_path, as if it had been run on a model; returns what the folder holds."""
    records = [{"id": 1, "photo": "", "type": "", "references": ["a"], "prediction": "a", "scores": {"x": value}}]
    described = {"samples": 1, "decoding": {}, "score": "x", "higher_is_better": True, "config": {}}
    record = {
        "checkpoint": {"path": "runs/a", "step": 1, "fingerprint": model},
        "evaluators": {name: described},
        "devices": "",
    }
    evaluation.write(tmp_path, {name: scoring.Scored("x", records, records)}, {f"{name}/x": value}, record)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert {metric.split("/")[0] for metric in record["metrics"]} == record["evaluators"].keys()
    for part in ("predictions", "samples"):
        theirs = {file.stem for file in (tmp_path / part).iterdir() if file.stem != "mine"}
        assert theirs == record["evaluators"].keys()
    return record


def test_results_of_one_model_are_kept_together_and_those_of_another_put_aside(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/mine.jsonl").touch()
    scored(tmp_path, "vqa", "one")
    record = scored(tmp_path, "caption", "one", 2.0)
    assert record["metrics"] == {"vqa/x": 1.0, "caption/x": 2.0}
    assert ">vqa<" in (tmp_path / "report.html").read_text()
    assert scored(tmp_path, "vqa", "one", 3.0)["metrics"] == {"caption/x": 2.0, "vqa/x": 3.0}
    assert scored(tmp_path, "choice", "another")["metrics"] == {"choice/x": 1.0}
    assert json.loads((tmp_path / "before/samples/vqa.jsonl").read_text())["scores"] == {"x": 3.0}
    assert (tmp_path / "samples/mine.jsonl").exists()


def test_only_files_that_the_results_before_name_are_moved(tmp_path):
    """A training's metrics.json, or a damaged one, names none; and no name leads out of the folder."""
    (tmp_path / "out/predictions").mkdir(parents=True)
    outside = write(tmp_path / "mine.json", "[]")
    for before in ("{", {"vqa/accuracy": 1.0}, {"metrics": {}, "evaluators": {"../../mine": {}}, "checkpoint": {}}):
        training = write(tmp_path / "out/predictions/vqa.json", "[]")
        write(tmp_path / "out/metrics.json", before)
        score(tmp_path, OFFICIAL, COCO)
        assert training.exists()
        assert outside.exists()


def test_predictions_that_are_scored_stay(tmp_path):
    scored(tmp_path / "out", "nocaps", "one")
    score(tmp_path, OFFICIAL, COCO, name="out/predictions/nocaps.json")
    assert [path.name for path in sorted((tmp_path / "out").rglob("*.json*"))] == [
        "nocaps.jsonl", "metrics.json", "caption.json", "nocaps.json", "caption.jsonl"
    ]  # fmt: skip


def test_scores_of_other_predictions_replace_those_before(tmp_path):
    asked = [{"image": "7.jpg", "question": "what?", "question_id": 1, "answer": ["a"] * 10}]
    score(tmp_path, [{"question_id": 1, "answer": "a"}], asked)
    assert (tmp_path / "out/samples/vqa.jsonl").exists()
    score(tmp_path, OFFICIAL, COCO)
    assert [file.name for file in (tmp_path / "out/samples").iterdir()] == ["caption.jsonl"]
    assert [file.name for file in (tmp_path / "out/predictions").iterdir()] == ["caption.json"]


def test_no_jax_is_imported_and_errors_are_one_line(tmp_path):
    files = write(tmp_path / "p.json", OFFICIAL), write(tmp_path / "r.json", COCO)
    code = "import sys; from prismer_jax import evaluate; evaluate.main(sys.argv[1:]); assert 'jax' not in sys.modules"
    flags = ["--score", str(files[0]), "--references", str(files[1])]
    subprocess.run([sys.executable, "-c", code, *flags], check=True)
    assert (tmp_path / "p_scores/metrics.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--score", "p.json"], "--score needs --references"),
        (["--score", "no.json", "--references", "r.json"], r"no\.json: cannot be read"),
        (["--score", "p.json", "--config", "c.py"], "--score needs no model"),
        (["--references", "r.json"], "belong to --score"),
        (["--score", "p.json", "--references", "r.json", "--task", "captoin"], "invalid choice: 'captoin'"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, message):
    with pytest.raises(UserError, match=message):
        evaluate.main(flags)
