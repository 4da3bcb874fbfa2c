import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from prismer_jax import compare, evaluate
from prismer_jax.errors import UserError

ANSWERS = ["yes"] * 10


def samples(scores, photos=None, **more):
    return [
        {
            "index": i,
            "id": 100 + i,
            "photo": f"photo{i if photos is None else photos[i]}",
            "type": "even" if i % 2 == 0 else "odd",
            "question": f"Is it <{i}>?",
            "references": ANSWERS,
            "prediction": "yes" if score else "no",
            "blank": "no",
            "scores": {"accuracy": score, "accuracy_blank": 0.0},
            **more,
        }
        for i, score in enumerate(scores)
    ]


def write_run(folder, found, name="vqa", data=None):
    """Results as an evaluation writes them."""
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / f"{name}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found))
    scores = [sample["scores"]["accuracy"] for sample in found]
    kinds = {kind: np.mean([s["scores"]["accuracy"] for s in found if s["type"] == kind]) for kind in ("even", "odd")}
    record = {
        "metrics": {f"{name}/accuracy": np.mean(scores), f"{name}/accuracy_blank": 0.0, f"{name}/only_here": 1.0}
        | {f"{name}/accuracy/{kind}": value for kind, value in kinds.items()},
        "checkpoint": {"path": str(folder), "step": 3, "fingerprint": "0"},
        "evaluators": {
            name: {
                "type": "vqa",
                "samples": len(found),
                "score": "accuracy",
                "higher_is_better": True,
                "config": {"data": data or {"name": "lists", "path": "nowhere.json"}},
            }
        },
    }
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def photos(tmp_path):
    """A list of twenty questions about red photos, as config.data has it."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(20):
        Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "images" / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": f"Is it {i}?", "answer": ANSWERS, "question_id": 100 + i})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    return {"name": "lists", "path": str(tmp_path / "list.json")}


def test_values_differences_and_intervals_stand_side_by_side(tmp_path, photos, capsys):
    a = write_run(tmp_path / "a", samples([100.0] * 5 + [0.0] * 15), data=photos)
    b = write_run(tmp_path / "b", samples([0.0] + [100.0] * 14 + [0.0] * 5), data=photos)
    c = write_run(tmp_path / "c", samples([100.0] * 5 + [0.0] * 15), data=photos)
    table = compare.compare([a, b, c], tmp_path / "out")
    row = table["metrics"]["vqa/accuracy"]
    assert row["values"] == [25.0, 70.0, 25.0]
    assert row["differences"] == [45.0, 0.0]
    (low, high), same = row["intervals"]
    assert 0 < low < 45 < high < 100
    assert same == [0.0, 0.0]
    assert table["metrics"]["vqa/accuracy/even"]["differences"] == [40.0, 0.0]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == table
    assert "+45.0000" in capsys.readouterr().out


def test_the_page_shows_where_they_differ_with_photos_and_escaped_texts(tmp_path, photos):
    a = write_run(tmp_path / "a", samples([100.0] * 5 + [0.0] * 15), data=photos)
    b = write_run(tmp_path / "b", samples([0.0] + [100.0] * 14 + [0.0] * 5), data=photos)
    compare.compare([a, b], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "better than A in 10 samples, worse in 1, and equal in 9" in page
    assert page.count("data:image/jpeg") == compare.SHOWN + 1
    assert "Is it &lt;0&gt;?" in page
    assert "<0>" not in page
    assert "http" not in page  # nothing is loaded from elsewhere


@pytest.mark.parametrize(("metric", "sign"), [("loss", -1), ("normal/angle", -1), ("depth/abs_rel", -1), ("gain", 1)])
def test_less_of_an_error_is_better_whatever_its_evaluators_score(tmp_path, metric, sign):
    """A student's `fidelity` and own_photo's gain are better where they are more, the errors beside them are not."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        found = [{**one, "scores": {metric: value, "accuracy": value}} for one in samples([1.0] * 4)]
        folder = write_run(tmp_path / name, found)
        record = json.loads((folder / "metrics.json").read_text())
        record["metrics"] = {f"vqa/{metric}": value}
        (folder / "metrics.json").write_text(json.dumps(record))
    compare.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    way = {1: "right", -1: "wrong"}[sign]
    assert f'<td class="model {way}">+1</td>' in (tmp_path / "out/report.html").read_text()


def test_a_run_of_predictions_alone_has_no_score_on_the_page(tmp_path):
    runs = [write_run(tmp_path / name, samples([score] * 4)) for name, score in (("a", 0.0), ("b", 100.0), ("c", 0.0))]
    lines = [{key: value for key, value in one.items() if key != "scores"} for one in samples([0.0] * 4)]
    (tmp_path / "c/samples/vqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare.compare(runs, tmp_path / "out")
    assert '<th>C</th><td class="said">no</td><td></td>' in (tmp_path / "out/report.html").read_text()


def test_without_the_photos_there_is_a_page_that_says_so(tmp_path):
    runs = [write_run(tmp_path / n, samples([0.0, 100.0] if n == "a" else [100.0, 0.0])) for n in "ab"]
    compare.compare(runs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "cannot be opened: nowhere.json" in page
    assert "data:image" not in page


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        base = samples(100.0 * (rng.random(80) < 0.5))
        other = samples(100.0 * (rng.random(80) < 0.6))
        _, (low, high) = compare.intervals(base, other, seed=trial)["accuracy"]
        hits += low <= 10.0 <= high
    assert 50 <= hits <= 60


def test_a_metric_that_is_no_mean_of_scores_gets_no_interval(tmp_path):
    runs = [write_run(tmp_path / n, samples([0.0, 100.0] if n == "a" else [100.0, 100.0])) for n in "ab"]
    record = json.loads((runs[1] / "metrics.json").read_text())
    record["metrics"]["vqa/accuracy/odd"] = 60.0  # while the scores say 100
    (runs[1] / "metrics.json").write_text(json.dumps(record))
    table = compare.compare(runs, tmp_path / "out")["metrics"]
    assert table["vqa/accuracy/odd"]["intervals"] == [None]
    assert table["vqa/accuracy/even"]["intervals"] == [[100.0, 100.0]]
    assert table["vqa/only_here"]["intervals"] == [None]


def test_a_metric_that_some_samples_lack_gets_no_interval():
    """As of a student's labels, where a photo has not every kind."""
    base, other = samples([0.0, 100.0]), samples([100.0, 100.0])
    base[1]["scores"] = other[1]["scores"] = {"accuracy": 100.0}
    assert {name.partition("/")[0] for name in compare.intervals(base, other)} == {"accuracy"}
    base[1]["scores"] = other[1]["scores"] = {"other": 100.0}
    assert compare.intervals(base, other) == {}


def test_questions_of_one_photo_are_drawn_together():
    rng = np.random.default_rng(2)
    gains = np.repeat(rng.random(20) < 0.5, 10) * 100.0  # all ten questions of a photo are gained, or none
    base = np.zeros(200)
    _, together = compare.intervals(*(samples(s, photos=np.arange(200) // 10) for s in (base, gains)))["accuracy"]
    mean, apart = compare.intervals(*(samples(s) for s in (base, gains)))["accuracy"]
    assert mean == gains.mean()
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert compare.intervals(samples(base), samples(gains)) == compare.intervals(samples(base), samples(gains))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [{**x, "id": x["id"] + 50} for x in s], "of different data sets: 0 ids in common, of 4 and 4"),
        (lambda s: s[:2], "of different data sets: 2 ids in common, of 4 and 2"),
        (lambda s: s[::-1], "of different data sets: 4 ids in common"),
        (lambda s: [{**x, "references": ["no"]} for x in s], "the references of 100 differ"),
        (lambda s: [{**x, "question": "?"} for x in s], "the question of 100 differ"),
    ],
)
def test_results_on_other_data_are_refused(tmp_path, change, message):
    found = samples([0.0, 100.0, 0.0, 100.0])
    a, b = write_run(tmp_path / "a", found), write_run(tmp_path / "b", change(found))
    with pytest.raises(UserError, match=message):
        compare.compare([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_alone_have_nothing_to_compare(tmp_path):
    runs = [write_run(tmp_path / name, samples([0.0, 1.0])) for name in "ab"]
    record = json.loads((runs[1] / "metrics.json").read_text())
    (runs[1] / "metrics.json").write_text(json.dumps(record | {"metrics": {}}))
    with pytest.raises(UserError, match=r"b: no metric in common. Evaluate without --predict-only"):
        compare.compare(runs, tmp_path / "out")


def test_what_is_no_result_is_one_line_that_says_what_to_do(tmp_path):
    found = samples([0.0, 100.0])
    good = write_run(tmp_path / "good", found)

    def refused(folder, message):
        with pytest.raises(UserError, match=message):
            compare.compare([good, folder], tmp_path / "out")

    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds no results of an evaluation \(metrics\.json;")
    (tmp_path / "empty" / "metrics.json").write_text('{"vqa/accuracy": 1.0}')  # a training's
    refused(tmp_path / "empty", r"prismer_jax\.evaluate --config")
    (tmp_path / "empty" / "metrics.json").write_text('{"metr')
    refused(tmp_path / "empty", "damaged")
    refused(write_run(tmp_path / "caption", found, name="caption"), "no evaluator in common")
    torn = write_run(tmp_path / "torn", found)
    file = torn / "samples" / "vqa.jsonl"
    text = file.read_text()
    file.write_text(text[:-10])
    refused(torn, "line 2 is damaged")
    file.write_text(text.splitlines(keepends=True)[0])
    refused(torn, "holds 1 samples instead of 2")
    file.unlink()
    refused(torn, "does not exist")
    with pytest.raises(UserError, match="at least two"):
        compare.compare([good], tmp_path / "out")


def test_a_training_folder_stands_for_the_evaluation_in_it(tmp_path):
    found = samples([0.0, 100.0])
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        write_run(run / "evaluation", found)
        (run / "metrics.json").write_text('{"vqa/accuracy": 1.0}')
    assert compare.compare(runs, tmp_path / "out")["runs"] == [str(run) for run in runs]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "a", "b"], "needs --output"),
        (["--compare", "a", "b", "--output", "c", "--checkpoint", "d"], "leave --config"),
        (["--config", "x.py"], "Give --config and --checkpoint"),
        ([], "Give --config and --checkpoint"),
    ],
)
def test_bad_usage(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate.main(arguments)


def test_a_comparison_imports_no_jax(tmp_path):
    runs = [str(write_run(tmp_path / n, samples([0.0, 100.0]))) for n in "ab"]
    code = (
        "import sys\nfrom prismer_jax import evaluate\n"
        f"evaluate.main(['--compare', *{runs!r}, '--output', {str(tmp_path / 'out')!r}])\n"
        "print([m for m in ('jax', 'torch', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
