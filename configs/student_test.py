"""The student's config: what it can be told, and that its labels are there before a step is made."""

import json

import pytest

from prismer_jax import config
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT
from prismer_jax.train import train

FILE = f"{ROOT / 'configs/student.py'}"


def load(arg, *overrides):
    return config.load(f"{FILE}:{arg}", overrides)


def test_photos_records_and_scenes():
    photos, records, scenes = load("data=p,labels=l"), load("dataset=d,kinds=depth+edge"), load("scenes")
    assert (photos.data.photos.name, photos.data.photos.labels, photos.model.image_size) == ("photos", "l", 480)
    assert (records.data.photos.path, records.model.kinds) == ("d", "depth+edge")
    assert "flip" not in photos.data.photos.pp  # words would be mirrored
    assert "flip" in records.data.photos.pp
    assert "labels_for('depth+edge')" in records.data.photos.pp
    assert scenes.evals.fidelity.data.split == "val"
    assert not photos.evals


@pytest.mark.parametrize("arg", ["", "data=p", "labels=l", "data=p,labels=l,scenes", "dataset=d,scenes"])
def test_one_source_has_to_be_named(arg):
    with pytest.raises(UserError, match="give data=PHOTOS,labels=LABELS or dataset=DIR or scenes"):
        load(arg)


def test_a_kind_that_no_example_has_labels_of_ends_it_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"^config\.data: no example has labels of seg_ade\. Make them with python -m"):
        train(load("smoke,kinds=depth+seg_ade"), tmp_path / "run")


def test_so_it_does_for_teachers(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    cfg = config.load(f"{ROOT / 'configs/experts.py'}:experts=none,teachers=depth+seg_ade,smoke", [])
    with pytest.raises(UserError, match=r"no example has labels of seg_ade"):
        train(cfg, tmp_path / "run")


@pytest.mark.slow
def test_a_smoke_run_leaves_a_student_and_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    scores = train(load("smoke"), tmp_path / "run")
    assert {"fidelity/depth/abs_rel", "fidelity/normal/angle", "fidelity/edge/f"} <= scores.keys()
    assert {"fidelity/seg_coco/miou", "fidelity/obj_detection/pq", "fidelity/ocr_detection/pq"} <= scores.keys()
    assert json.loads((tmp_path / "run/export/config.json").read_text())["model"]["name"] == "student"
