"""A student through the commands: one run of its network writes all its kinds of labels, which are as any others."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from prismer_jax import checkpoint, datasets, labels, models
from prismer_jax.caption_test import write_model
from prismer_jax.captioner import Captioner
from prismer_jax.datasets import lists
from prismer_jax.errors import UserError
from prismer_jax.experts import Student
from prismer_jax.pp import build
from prismer_jax.shards import records
from tools import make_labels

KINDS = ("depth", "seg_coco", "obj_detection", "ocr_detection")
CLASSES = ("sky", "cube", "ball")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A folder of weights with an untrained student of some kinds."""
    folder = tmp_path_factory.mktemp("weights")
    names = dict(seg_coco=CLASSES, obj_detection=CLASSES)
    model = dict(name="student", variant="tiny", kinds="+".join(KINDS), classes=names)
    variables = jax.jit(models.build(**model).init_variables)(jax.random.key(0))
    checkpoint.export(folder / "student", variables, {"model": model, "tasks": {}})
    return folder


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(30, 40), (40, 30), (20, 20)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/p{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def runs(monkeypatch):
    """Counts the photos that the network saw."""
    seen, run = [], Student.run
    monkeypatch.setattr(
        Student,
        "run",
        lambda self, variables, prepared, *rest: seen.extend(prepared) or run(self, variables, prepared, *rest),
    )
    return seen


def main(photos, student, out, *flags, experts="student"):
    make_labels.main(
        ["--images", str(photos), "--output", str(out), "--experts", experts, "--checkpoints", str(student), *flags]
    )
    return out


def test_one_run_a_photo_writes_label_files_of_all_kinds(photos, student, tmp_path, runs, capsys):
    out = main(photos, student, tmp_path / "labels", "--batch-size", "1")
    assert len(runs) == 3
    source = lists.load(images=photos, labels=out)
    for index in range(3):
        example = build("labels_for('all')|decode")(source[index], np.random.default_rng(0))
        for kind in KINDS:
            assert example[labels.EXPERTS[kind].key].shape[:2] == example["image"].shape[:2], kind
        assert (example["labels/edge"] == 0).all()  # which it does not make
        assert set(np.unique(example[labels.CLASSES_KEY])) <= {-1, 0, 1, 2}
    assert "student: 3 labels made, 0 were there" in capsys.readouterr().out
    assert set(json.loads((out / "make_labels.json").read_text()).values()) == {Student.made_with}

    (out / "depth/p1.png").unlink()
    (out / "obj_detection/p2.json").unlink()
    main(photos, student, out)
    assert not (out / "depth/p1.png").exists()  # what was done is done
    kept = (out / "seg_coco/p1.png").stat().st_mtime_ns
    main(photos, student, out, "--recheck")
    assert (out / "depth/p1.png").exists()
    assert (out / "obj_detection/p2.json").exists()
    assert (out / "seg_coco/p1.png").stat().st_mtime_ns == kept
    assert "student: 2 labels made, 1 were there" in capsys.readouterr().out


def test_a_part_of_the_kinds_and_then_the_others(photos, student, tmp_path):
    out = main(photos, student, tmp_path / "labels", experts="student:seg_coco,depth")
    assert sorted(path.name for path in out.iterdir() if (path / "p0.png").exists()) == ["depth", "seg_coco"]
    main(photos, student, out)
    assert sorted(path.name for path in out.iterdir() if (path / "p0.png").exists()) == sorted(KINDS)


def test_a_data_set_of_records(photos, student, tmp_path, capsys):
    out = tmp_path / "records"
    flags = ["--images", str(photos), "--output-dataset", str(out), "--checkpoints", str(student)]
    make_labels.main([*flags, "--experts", "student", "--shard-size", "2"])
    source = datasets.load("records", path=str(out), task="all")
    assert len(source) == 3
    assert {key for key in source[0] if key.startswith("labels/")} >= {labels.EXPERTS[kind].key for kind in KINDS}
    assert isinstance(source, records.Source)
    make_labels.main([*flags[:2], "--output", str(tmp_path / "x"), *flags[4:], "--experts", "student", "--dry-run"])
    assert "student: 3 of 3 labels to make" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ("student:edge", r"was not trained on edge; it makes depth, seg_coco, obj_detection, ocr_detection\."),
        ("student:dept", "Did you mean 'depth'"),
        ("depth,student", r"a student labels alone, as student or student:depth,edge; run it by itself\."),
    ],
)
def test_what_a_student_cannot_do_is_one_line(photos, student, tmp_path, experts, message):
    with pytest.raises(UserError, match=message) as error:
        main(photos, student, tmp_path / "labels", experts=experts)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_student_says_how_to_train_one(photos, tmp_path):
    with pytest.raises(UserError, match=r"holds no student of the experts\. Train one: configs/student\.py"):
        main(photos, photos, tmp_path / "labels")


def test_labels_of_a_student_are_not_mixed_with_those_of_experts(photos, student, tmp_path):
    out = main(photos, student, tmp_path / "labels")
    with pytest.raises(UserError, match="holds labels of depth made with a student of the experts, not with random"):
        make_labels.main(["--images", str(photos), "--output", str(out), "--experts", "depth", "--random-weights"])


def test_a_captioner_sees_through_a_student_that_knows_its_classes(photos, student, tmp_path, runs, monkeypatch):
    monkeypatch.setenv("PRISMER_CACHE_DIR", str(tmp_path / "cache"))
    tasks = {
        "question": dict(
            pp="labels_for('depth+edge+seg_coco+obj_detection')|decode|resize(32, 48)|question_prompt|tokenize(9)",
            decode=dict(method="greedy", max_new=3),
        )
    }
    names = dict(seg_coco=CLASSES, obj_detection=("other", "names"))
    seen = ["depth", "edge", "seg_coco", "obj_detection"]
    model = write_model(tmp_path / "model", tasks, experts=seen, classes=names)
    captioner = Captioner(model, student)
    (expert,) = captioner.experts.experts
    assert expert.kinds == ("depth", "seg_coco")
    assert set(captioner.experts.without) == {"edge", "obj_detection"}  # not trained on, and other classes
    said = captioner.label(photos)
    assert len(runs) == 3
    assert [set(row["labels"]) for row in said] == [{"depth", "seg_coco"}] * 3
    captioner.answer(photos, "what is it")
    assert len(runs) == 3  # they are kept
    source = captioner.photos(photos, None)
    source.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/make_labels.json").read_text())["depth"] == Student.made_with
