import contextlib
import json
import os
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from prismer_jax import checkpoint, config, datasets, label_files, labels
from prismer_jax.datasets.altered import Altered, keys_of
from prismer_jax.errors import UserError, run_main
from prismer_jax.evaluate_test import SPEC, data_dir, model  # noqa: F401 - fixtures
from prismer_jax.report import audit as report
from tools import audit

KEYS = [key for name in ("depth", "obj_detection") for key in keys_of(name)]


class Questions:
    """Two questions about each of five photos; labels say whose they are."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        photo = index // 2
        map = label_files.encode(np.full((2, 2, 1), photo, np.uint8))  # also a photo
        return {"id": str(index), "image": map, "question": f"{index}?", **dict.fromkeys(KEYS, map)} | {
            labels.CLASSES_KEY: photo,
            "labels/edge": photo,
        }


def test_shuffled_labels_are_those_of_another_photo_and_always_the_same():
    altered = Altered(Questions(), KEYS, "shuffled", seed=0)
    examples = [altered[index] for index in range(10)]
    for index, example in enumerate(examples):
        own = Questions()[index]
        assert {key: example[key] for key in ("id", "image", "question", "labels/edge")} == {
            key: own[key] for key in ("id", "image", "question", "labels/edge")
        }
        assert (example["labels/depth"] == example[labels.CLASSES_KEY]).all()  # of one photo, which is another
        assert example[labels.CLASSES_KEY] != index // 2
    again, other = (Altered(Questions(), KEYS, "shuffled", seed) for seed in (0, 1))
    assert str(examples) == str([again[index] for index in range(10)])
    assert str(examples) != str([other[index] for index in range(10)])


def test_blank_labels_are_not_there_and_one_photo_cannot_be_shuffled():
    assert set(Questions()[3]) - set(Altered(Questions(), KEYS, "blank", 0)[3]) == set(KEYS)
    one = [{"image": b"a", "labels/depth": 1}] * 2
    with pytest.raises(UserError, match="the data set has one photo"):
        Altered(one, ["labels/depth"], "shuffled", 0)[0]
    with pytest.raises(UserError, match="Did you mean 'shuffled'"):
        datasets.load("altered", of=dict(name="scenes", count=1), experts="depth", how="shufled")
    with pytest.raises(UserError, match="give labels=FOLDER with how='folder', and only there"):
        datasets.load("altered", of=dict(name="scenes", count=1), experts="depth", how="folder")


def test_labels_of_a_folder_take_the_place_of_an_experts_own(tmp_path):
    photo = {
        "id": "sub/1",
        "image": b"a",
        "labels/depth": b"own",
        "labels/edge": b"own",
        labels.CLASSES_KEY: np.zeros(256),
    }
    label_files.write(tmp_path, "depth", "sub/1", np.full((2, 2, 1), 7, np.uint8))
    label_files.write(tmp_path, "obj_detection", "sub/1", np.full((2, 2, 1), 0, np.uint8), classes=[5])
    experts = ("depth", "obj_detection")
    keys = [key for name in experts for key in keys_of(name)]
    example = Altered([photo, photo], keys, "folder", 0, experts, tmp_path)[1]
    assert example["labels/depth"] == str(tmp_path / "depth/sub/1.png")
    assert (example["labels/edge"], example[labels.CLASSES_KEY][0]) == (b"own", 5)
    with pytest.raises(UserError, match=r"holds no labels of edge\. Make them"):
        datasets.load("altered", of=dict(name="scenes"), experts="edge", how="folder", labels=tmp_path)


def test_labels_of_a_folder_are_found_for_questions_whose_ids_are_not_their_photos(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    asked = [{"image": f"{tmp_path}/a.jpg", "question": "what?", "question_id": 5, "answer": "x"}]
    (tmp_path / "q.json").write_text(json.dumps(asked))
    label_files.write(tmp_path / "labels", "depth", "a.jpg", labels.blank("depth", 6, 8))
    of = dict(name="lists", path=f"{tmp_path}/q.json", images=f"{tmp_path}")
    source = datasets.load("altered", of=of, experts="depth", how="folder", labels=tmp_path / "labels")
    assert source[0]["labels/depth"] == str(tmp_path / "labels/depth/a.png")


def test_an_arm_changes_the_labels_of_its_experts_and_nothing_else():
    assert [arm.name(("depth", "edge")) for arm in audit.arms(("depth", "edge"), ("blank", "noise"))] == [
        "as it is",
        *("depth blank", "depth noise", "edge blank", "edge noise"),
        *("all experts blank", "all experts noise"),
    ]
    assert [arm.name(("depth",)) for arm in audit.arms(("depth",), ("blank",))] == ["as it is", "depth blank"]
    section = dict(type="vqa", data=dict(name="scenes"), pp="labels_for('all')|decode|resize(8)")
    assert audit.altered(section, audit.Arm(), {}) == {**section, "blank": False}
    assert audit.altered(section, audit.Arm(("depth",), "shuffled"), {})["data"] == dict(
        name="altered", of=dict(name="scenes"), experts=["depth"], how="shuffled"
    )
    changed = audit.altered(section, audit.Arm(("depth", "seg_coco"), "noise"), {"seg_coco": ["a", "b"]})
    noise = "noise_labels('depth', num_classes=None)|noise_labels('seg_coco', num_classes=2)"
    assert changed["pp"] == f"labels_for('all')|decode|{noise}|resize(8)"
    with pytest.raises(UserError, match="has no op `decode`"):
        audit.altered({**section, "pp": "my.decode()|resize(8)"}, audit.Arm(("depth",), "noise"), {})


@pytest.mark.parametrize(("experts", "total"), [("depth", 3), ("depth+edge", 7)])
def test_the_last_arm_is_the_last_of_all(tmp_path, monkeypatch, capsys, experts, total):
    """Of a single expert, who is all experts, there is no arm twice."""
    monkeypatch.setattr(audit.checks, "missing", lambda sources, experts: [])
    monkeypatch.setattr(audit.evaluate, "evaluate", lambda *args, **settings: {})
    vqa = dict(type="vqa", data=dict(name="scenes", split="val", size=32, count=40), pp="decode")
    cfg = config.Section(dict(model=dict(experts=experts), evals=dict(vqa=vqa)))
    with pytest.raises(UserError, match=r"no results of an evaluation|no such folder"):
        audit.audit(cfg, tmp_path / "run", tmp_path / "out", kinds=("blank", "shuffled"))
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"({total} of {total})")


FOUND = {
    "arms": ["as it is", "depth blank", "all experts blank"],
    "level": 95,
    "metrics": {
        "vqa/accuracy": {"values": [80.0, 78.0, 40.0], "differences": [-2.0, -40.0], "intervals": [[-4, 0.5], None]},
        "vqa/accuracy/color": {"values": [90.0, 90, 60], "differences": [0.0, -30.0], "intervals": [None, [-35, -25]]},
    },
    "reading_ms": {"depth": 1.25},
    "making_ms": None,
}


@pytest.mark.parametrize("kind", audit.KINDS)
def test_labels_of_every_kind_can_be_made_without_other_flags(kind):
    section = dict(type="vqa", pp="decode", data=dict(name="scenes", split="val", size=32, count=40))
    datasets.load(**audit.altered(section, audit.Arm(("depth",), kind), {})["data"])[0]


def test_the_table_has_differences_with_their_intervals_and_the_plot_a_panel_a_metric(tmp_path):
    lines = report.table(FOUND).splitlines()
    assert lines[0] == "|  | vqa/accuracy | vqa/accuracy/color |"
    assert lines[2] == "| as it is | 80 | 90 |"
    assert lines[3] == "| depth blank | -2 [-4, +0.5] | +0 |"
    assert "Milliseconds a photo of reading labels: depth 1.25." in lines
    report.plot(tmp_path / "audit.png", FOUND)
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    metrics = {**FOUND["metrics"], "vqa/unscored": {}, "vqa/accuracy_blank": {}}
    assert report.chosen(metrics, {"vqa": "accuracy"}) == FOUND["metrics"]


@pytest.mark.parametrize(
    ("lower_is_better", "colours"), [([], [report.LOSS, report.OTHER]), (["loss"], [report.OTHER, report.LOSS])]
)
def test_the_plot_marks_what_is_worse_in_red(tmp_path, monkeypatch, lower_is_better, colours):
    """Of a loss that is what is more."""
    panel = mock.MagicMock()
    monkeypatch.setattr(report, "panels", lambda *args: contextlib.nullcontext([panel]))
    row = {"values": [2.0, 1.0, 3.0], "differences": [-1.0, 1.0], "intervals": [[-1.5, -0.5], [0.5, 1.5]]}
    report.plot(tmp_path / "audit.png", {**FOUND, "metrics": {"loss/loss": row}, "lower_is_better": lower_is_better})
    assert [call.kwargs["color"] for call in panel.barh.call_args_list] == colours


def test_a_model_without_experts_is_one_line(capsys):
    with pytest.raises(SystemExit):
        run_main(audit.main, ["--checkpoint", "x", "--config", SPEC.replace(":", ":z,"), "--output", "y"])
    assert capsys.readouterr().err == "error: The config's model has no experts: there is nothing to audit.\n"


def test_an_expert_without_labels_is_not_called_worth_nothing(tmp_path):
    cfg = config.plain(config.load(SPEC))
    cfg["evals"] = {"vqa": cfg["evals"]["vqa"]}
    cfg["evals"]["vqa"]["data"] = dict(name="photos", images=str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"^config\.evals\.vqa: no labels of depth, normal, .* worth nothing\. Make"):
        audit.audit(config.Section(cfg), tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_another_checkpoint_or_config_are_not_taken_for_those_asked_for(tmp_path):
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        checkpoint.export(run, {"params": {"x": np.ones(2, np.float32)}}, {})
    asked, cfg = {"config": "a.py", "labels": "as it is"}, config.Section(dict(model={}, tokenizer="bytes", evals={}))
    assert not audit.is_done(tmp_path / "arm", runs[0], asked, cfg)
    record = {"checkpoint": {"path": str(runs[0])}, "metrics": {}, "evaluators": {}, **asked}
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm/metrics.json").write_text(json.dumps({**record, "model": {}, "tokenizer": "bytes"}))
    assert audit.is_done(tmp_path / "arm", runs[0], asked, cfg)
    for other, said in ((runs[1], asked), (runs[0], {**asked, "config": "b.py"})):
        with pytest.raises(UserError, match="holds results of another checkpoint, config or choice of evaluators"):
            audit.is_done(tmp_path / "arm", other, said, cfg)
    os.utime(tmp_path / "arm/metrics.json", (0, 0))  # the checkpoint was made anew
    with pytest.raises(UserError, match="Choose another --output"):
        audit.is_done(tmp_path / "arm", runs[0], asked, cfg)


class Evaluated(Exception):
    """All arms are there."""


@pytest.fixture
def audited(monkeypatch, tmp_path):
    """A function (config's content, evaluators asked for) that audits it, with results as `evaluate` writes them."""

    def evaluate(cfg, path, folder, asked):
        content = {"model": config.plain(cfg.model), "tokenizer": cfg.tokenizer}
        content["evaluators"] = {name: {"config": config.plain(section)} for name, section in cfg.evals.items()}
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(
            json.dumps({**asked, **content, "checkpoint": {"path": str(path)}, "metrics": {}})
        )

    def tabulate(folders):
        raise Evaluated

    def audited(content, only=()):
        with pytest.raises(Evaluated):
            run(
                config.Section(content),
                tmp_path / "run",
                tmp_path,
                only=only,
                kinds=["blank"],
                asked={"config": "a.py"},
            )

    run = audit.audit
    checkpoint.export(tmp_path / "run", {"params": {"x": np.ones(2, np.float32)}}, {})
    monkeypatch.setattr(audit.evaluate, "evaluate", evaluate)
    monkeypatch.setattr(audit.compare, "tabulate", tabulate)
    return audited


SECTION = dict(type="vqa", data=dict(name="scenes", count=4), pp="decode", batch_size=4, num_workers=0)
CONTENT = dict(
    model=dict(variant="tiny", experts="depth"),
    tokenizer="bytes",
    evals=dict(vqa=SECTION, caption=SECTION | {"batch_size": 2}),
)


def test_results_of_one_evaluator_are_not_those_of_all(audited):
    audited(CONTENT, ["caption"])
    audited(CONTENT, ["caption"])  # they are there already
    with pytest.raises(UserError, match="holds results of another checkpoint, config or choice of evaluators"):
        audited(CONTENT)


@pytest.mark.parametrize(
    "other",
    [
        {"model": CONTENT["model"] | {"variant": "base"}},
        {"tokenizer": "wordpiece"},
        {"evals": CONTENT["evals"] | {"vqa": SECTION | {"batch_size": 8}}},
    ],
)
def test_results_of_a_config_whose_file_says_something_else_by_now_are_not_taken(audited, other):
    audited(CONTENT)
    audited(CONTENT | {"evals": CONTENT["evals"] | {"vqa": SECTION | {"num_workers": 2}}})  # changes no result
    with pytest.raises(UserError, match="holds results of another checkpoint, config or choice of evaluators"):
        audited(CONTENT | other)


def test_a_damaged_label_does_not_end_the_clock(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        label_files.write(tmp_path / "labels", "depth", f"{name}.png", np.zeros((8, 8, 1), np.uint8))
    (tmp_path / "labels/depth/a.png").write_bytes(b"")
    data = dict(
        name="photos", images=[str(tmp_path / "a.png"), str(tmp_path / "b.png")], labels=str(tmp_path / "labels")
    )
    assert audit.reading(data, ["depth"])["depth"] >= 0


@pytest.mark.slow
def test_an_audit_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder, _ = model
    flags = ["--checkpoint", str(folder), "--config", SPEC, "--output", str(tmp_path), "--only", "vqa"]
    audit.main([*flags, "--kinds", "blank"])
    found = json.loads((tmp_path / "audit.json").read_text())
    assert len(found["arms"]) == 8
    assert set(found["reading_ms"]) == set(audit.experts_of(config.load(SPEC)))
    told = json.loads((tmp_path / "all_experts_blank/metrics.json").read_text())["evaluators"]["vqa"]["config"]["data"]
    assert (told["name"], told["how"], told["experts"]) == (
        "altered",
        "blank",
        list(audit.experts_of(config.load(SPEC))),
    )
    capsys.readouterr()
    monkeypatch.setattr(audit.evaluate, "evaluate", None)
    audit.main([*flags, "--kinds", "blank"])
    assert capsys.readouterr().out.count("there already") == 8
    assert np.isfinite(json.loads((tmp_path / "audit.json").read_text())["metrics"]["vqa/accuracy"]["values"]).all()
