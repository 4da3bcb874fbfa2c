"""The student as an expert: labels of what its network says, and which checkpoints it is."""

import json

import jax
import numpy as np
import pytest

from prismer_jax import checkpoint, models
from prismer_jax.errors import UserError
from prismer_jax.experts import Student, student, weights
from prismer_jax.labels import BACKGROUND, PAPER

B = BACKGROUND


def test_instances_are_connected_cells_of_a_class_the_largest_first():
    classes = np.full((6, 8), -1)
    classes[0:2, 0:2] = 3
    classes[0:3, 4:8] = 3
    classes[4:6, 0:3] = 5
    classes[5, 7] = 5  # too small
    ids, places = student.instances(classes)
    assert [int(classes[place]) for place in places] == [3, 5, 3]
    assert ids[0, 4] == 0 and ids[4, 0] == 1 and ids[0, 0] == 2  # noqa: PT018
    assert ids[5, 7] == B
    assert (ids == 0).sum() == 12


def test_things_of_a_class_that_touch_are_told_apart_by_their_middles():
    classes, middles = np.full((8, 12), -1), np.zeros((8, 12, 2), int)
    classes[2:6, 1:11] = 3
    middles[:, :6], middles[:, 6:] = (4, 3), (4, 8)
    middles[2, 5] = 4, 5  # between the two, of the first
    middles[3, 6] = 5, 8  # not quite
    classes[0, 11] = 3  # a piece of the second
    ids, places = student.instances(classes, middles)
    assert [(int(classes[place]), int(ids[place])) for place in places] == [(3, 0), (3, 1)]
    expected = np.full((8, 12), B)
    expected[2:6, 1:6], expected[2:6, 6:11] = 1, 0
    expected[0, 11] = 0
    np.testing.assert_array_equal(ids, expected)
    assert len(student.instances(classes)[1]) == 1


def test_no_more_than_255_instances_have_ids():
    classes = np.full((80, 80), -1)
    for i in range(400):
        row, column = divmod(i, 20)
        classes[row * 4 : row * 4 + 2, column * 4 : column * 4 + 2] = 1
    ids, places = student.instances(classes)
    assert len(places) == 255
    assert ids.max() == B


def test_labels_are_of_the_photos_size_and_of_the_experts_formats():
    half = np.zeros((4, 4), bool)
    half[:, 2:] = True
    word = np.zeros(64, np.float16)
    word[5] = 1
    read = {
        "depth": np.where(half, 3.0, -1.0)[..., None],
        "normal": np.where(half[..., None], [0.0, 0.9, 0.0], [0.1, 0.0, 0.0]),
        "edge": np.where(half, 1.0, 0.0)[..., None],
        "seg_coco": np.where(half, 2, -1).astype(np.int16),
        "obj_detection": np.where(half[..., None], [700, 2, 3], [-1, 0, 0]).astype(np.int16),
        "ocr_detection": np.where(half[..., None], word, 0).astype(np.float16),
    }
    made = student.labels_of(read, (8, 12))
    assert {label.map.shape[:2] for label in made.values()} == {(8, 12)}
    assert all(label.map.dtype == np.uint8 for label in made.values())
    left, right = (0, 0), (0, 11)
    assert [made["depth"].map[at][0] for at in (left, right)] == [0, 255]
    assert made["normal"].map[left].tolist() == [128, 128, 128]  # none
    assert made["normal"].map[right].tolist() == [128, 255, 128]
    assert [made["edge"].map[at][0] for at in (left, right)] == [128, 255]
    assert [made["seg_coco"].map[at][0] for at in (left, right)] == [B, 2]
    assert [made["obj_detection"].map[at][0] for at in (left, right)] == [B, 0]
    assert made["obj_detection"].classes == [700]
    assert [made["ocr_detection"].map[at][0] for at in (left, right)] == [B, 0]
    assert made["ocr_detection"].features.std(1) == pytest.approx(1, abs=0.01)
    assert made["ocr_detection"].words == [""]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir as a training of a student of two kinds leaves it."""
    folder, sizes = tmp_path_factory.mktemp("run"), dict(name="student", variant="tiny", kinds="depth+seg_coco")
    model = models.build(**sizes)
    variables = jax.jit(model.init_variables)(jax.random.key(1))
    checkpoint.export(folder / "export", variables, {"model": sizes, "tasks": {}})
    return folder


def test_one_run_of_the_network_gives_all_kinds(run):
    expert = Student()
    assert expert.kinds == PAPER  # of an untrained one
    variables = weights.load(expert, run)
    assert expert.kinds == ("depth", "seg_coco")
    photos = [np.random.default_rng(i).integers(0, 256, (20, 30 + i, 3), np.uint8) for i in range(3)]
    labels = expert.predict(photos, variables)
    assert [{kind: label.map.shape for kind, label in made.items()} for made in labels] == [
        {"depth": (20, 30 + i, 1), "seg_coco": (20, 30 + i, 1)} for i in range(3)
    ]
    assert labels[0]["depth"].map.std() > 0


def test_a_part_of_its_kinds_can_be_asked_for(run):
    expert = Student(only="depth")
    weights.load(expert, run)
    assert expert.kinds == ("depth",)
    other = Student(only="depth+edge")
    with pytest.raises(UserError, match=r"was not trained on edge; it makes depth, seg_coco\.$"):
        weights.load(other, run)


def test_a_student_lies_in_a_folder_of_weights_or_is_one(run, tmp_path):
    assert weights.find(Student(), run) == run / "export"
    (tmp_path / "student").symlink_to(run / "export")
    assert weights.find(Student(), tmp_path) == tmp_path / "student"
    with pytest.raises(UserError, match=r"holds no student of the experts\. Train one: configs/student\.py"):
        weights.find(Student(), tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"model": {"name": "prismer"}}))
    (tmp_path / "other/weights").mkdir()
    with pytest.raises(UserError, match="holds no student"):
        weights.find(Student(), tmp_path / "other")
    with pytest.raises(UserError, match="is no student of the experts"):
        Student().open(tmp_path / "other")
