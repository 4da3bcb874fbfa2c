import json

import numpy as np
import pytest
from PIL import Image, ImageColor

from prismer_jax import config
from prismer_jax.labels import EXPERTS, PAPER
from prismer_jax.report import draw, evaluation, page, results, selection
from prismer_jax.report.draw import colorize, contact, panel
from prismer_jax.report.page import write_report
from prismer_jax.scoring import Scored


def sample(experts=PAPER, **more):
    rng = np.random.default_rng(0)
    labels = {e: rng.integers(0, 3, (24, 32, EXPERTS[e].channels), np.uint8) for e in experts}
    image = rng.integers(0, 255, (48, 64, 3), np.uint8)
    names = {"seg_coco": ("sky", "ground", "ball & chain"), "obj_detection": ("sky", "ground", "ball & chain")}
    texts = {"prediction": "a <b>red</b> ball", "references": ["a ball", "a ball", "a red ball"]}
    return {
        "image": image,
        "labels": labels,
        "classes": names,
        "instances": [2, 2, -1],
        "words": ["stop"],
        **texts,
    } | more


@pytest.mark.parametrize("expert", EXPERTS)
def test_label_maps_become_rgb_of_the_same_size(expert):
    label = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(EXPERTS[expert].channels, axis=2)
    picture = colorize(expert, label)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8


def test_ids_have_distinct_colours_on_a_dark_background():
    colors = draw.id_colors().astype(int)
    assert len({tuple(c) for c in colors}) > 250
    near = min(np.abs(colors[i] - colors[j]).sum() for i in range(20) for j in range(i))
    assert near > 40
    assert colors[255].max() < 40 < colors[:255].max(axis=1).min()


def test_instances_share_their_class_hue_and_differ_in_shade():
    colors = draw.id_colors([3, 3, 5]).astype(float)
    same = [c / np.linalg.norm(c) for c in colors[:3]]
    assert same[0] @ same[1] > 0.999 > same[0] @ same[2]
    assert np.abs(colors[0] - colors[1]).sum() > 60


def test_depth_is_stretched_and_constant_depth_is_no_division_by_zero():
    low, high = colorize("depth", np.array([[100, 101]], np.uint8))[0].astype(int)
    assert high.sum() > low.sum() + 200
    assert len(np.unique(colorize("depth", np.full((4, 4, 1), 9, np.uint8)).reshape(-1, 3), axis=0)) == 1


def test_panel_grows_with_its_texts_and_marks_right_and_wrong():
    short, long = panel(sample()), panel(sample(prediction="a long caption " * 30, references=["word" * 60] * 3))
    assert long.width == short.width
    assert long.height > short.height + 100
    right, wrong, partly = map(ImageColor.getrgb, (draw.RIGHT, draw.WRONG, draw.PARTLY))
    for correct, color in ((1.0, right), (0.0, wrong), (0.6, partly)):
        colors = {c for _, c in panel(sample(question="Which?", correct=correct)).getcolors(1 << 20)}
        assert color in colors
        assert not (colors & ({right, wrong, partly} - {color}))


def test_panel_without_labels_or_words():
    assert panel(sample(experts=(), prediction="", references=[])).height > draw.PHOTO


def test_legend_names_what_is_in_the_maps_and_the_words():
    names = [name for _, name in draw.legend(sample())]
    assert sorted(names[:3]) == ["ball & chain", "ground", "sky"]
    assert names[3:] == ["“stop”"]
    assert draw.legend(sample(("ocr_detection",), words=["", "stop"])) == draw.legend(sample(words=["a", "stop"]))[-1:]


def test_contact_places_panels_without_overlap():
    panels = [Image.new("RGB", (50, 30 + 10 * i), (i + 1, 0, 0)) for i in range(5)]
    sheet = contact(panels, columns=2)
    counts = {color[0]: n for n, color in sheet.getcolors() if color[1:] == (0, 0)}
    assert counts == {i + 1: 50 * (30 + 10 * i) for i in range(5)}


def test_report_holds_pictures_tables_and_escaped_texts(tmp_path):
    lines = [{"step": s, "train/loss": 3.0 / s, "vqa/accuracy": s, "vqa/accuracy_blank": 1.0} for s in range(1, 100)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "tra')
    samples = [sample(), sample(question="<i>?", correct=1.0, blank="a & b")]
    final = {"vqa/accuracy": 61.25, "vqa/accuracy_blank": 28.0, "vqa/accuracy/<color>": 50.0, "caption/cider": 1.33}
    write_report(tmp_path, samples, final, config="lr = 1\n<script>alert(1)</script>")
    text = (tmp_path / "report.html").read_text()
    assert Image.open(tmp_path / "report.png").width > 800
    assert Image.open(tmp_path / "curves.png").width > 400
    for raw in ("<b>red", "<i>?", "a & b", "<script>alert", "<color>", "ball & chain"):
        assert raw not in text
    for shown in ("&lt;b&gt;red", "a &amp; b", "61.25", "28", "&lt;color&gt;", "1.33", "a ball  ×2", "blank image"):
        assert shown in text
    assert text.count('src="data:image/') == 1 + 2 * 7
    assert "http" not in text  # nothing is loaded from elsewhere


def test_report_of_an_empty_workdir_is_a_page_without_pictures(tmp_path):
    write_report(tmp_path / "new", [], {}, "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("train/loss", ("train", "loss", "", "")),
        ("vqa/accuracy_blank/what is", ("vqa", "accuracy", "blank", "what is")),
        ("caption/cider_most_frequent", ("caption", "cider", "most_frequent", "")),
        ("loss", ("", "loss", "", "")),
    ],
)
def test_metric_names_split_into_evaluator_metric_variant_and_type(name, parts):
    assert page.split_name(name) == parts


def test_scores_by_type_are_percentages_only_where_they_are_beyond_10():
    domains, faithful, asked = page.tables({
        "caption/bleu4/in-domain": 0.0361, "fidelity/depth/abs_rel": 0.0342, "vqa/accuracy/color": 61.25,
    })  # fmt: skip
    for card, number in ((domains, "0.0361"), (faithful, "0.0342")):
        assert f"<td class=model>{number}</td>" in card
        assert "by type" in card
    assert 'var(--bar) 61%,transparent 0)">61.25</td>' in asked


def test_a_score_that_is_no_number_costs_no_report(tmp_path):
    record = {"id": 1, "photo": "1.jpg", "type": "", "references": []}
    scored = Scored("loss", [record | {"scores": {"loss": loss}} for loss in (1.0, float("nan"), float("inf"))], [])
    about = {"evaluators": {"a": {"samples": 3, "decoding": {}}}, "devices": ""}
    about["checkpoint"] = {"path": "a", "step": None, "fingerprint": ""}
    evaluation.write(tmp_path, {"a": scored}, {"a/loss": float("nan")}, about)
    assert "0.95 to 1: 1<" in (tmp_path / "report.html").read_text()


def test_a_score_that_is_no_number_is_neither_best_nor_worst():
    losses = [3.0, float("nan"), 1.0, 2.0]
    records = [{"id": i, "photo": i, "type": "", "scores": {"loss": loss}} for i, loss in enumerate(losses)]
    for which, order in (("best", [2, 3, 0]), ("worst", [0, 3, 2])):
        assert [one["id"] for one in selection.chosen(records, 4, which, "loss", False)] == order


class Evaluator:
    predictions = ({"image_id": 1},)

    def samples(self, number):
        self.number = number
        return []


@pytest.mark.parametrize(("samples", "each"), [(12, 6), (1, 1), (0, None)])
def test_a_report_shows_as_many_samples_as_it_is_told(samples, each, tmp_path):
    evaluators = {"a": Evaluator(), "b": Evaluator()}
    results.write(tmp_path, evaluators, {}, config.Section({}), samples=samples)
    assert [getattr(evaluator, "number", None) for evaluator in evaluators.values()] == [each, each]
