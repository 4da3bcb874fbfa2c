import itertools
import json
import os

import pytest

from prismer_jax import label_files, labels
from prismer_jax.datasets import fewshot, label_names, lists
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped


@pytest.fixture
def two(tmp_path):
    """A list of two photos of one file name, in the folders a and b, and a folder with the label of that name."""
    rows = []
    for folder in "ab":
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "1.jpg").touch()
        rows.append({"image": f"{tmp_path}/data/{folder}/1.jpg", "caption": folder})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    label_files.write(tmp_path / "labels", "edge", "1.jpg", labels.blank("edge", 6, 8))
    return tmp_path


def test_names_with_one_key_are_those_with_one_label_file():
    names = ["a.jpg", "a.png", "a", "a.b.jpg", "a.b/c", "a.b/c.jpg", "b/.jpg", "b/.png", ".jpg", "A.jpg", "a.b"]
    for one, other in itertools.combinations(names, 2):
        shared = label_files.path_of("", "", one) == label_files.path_of("", "", other)
        assert (label_names.key(one) == label_names.key(other)) == shared, (one, other)
    assert label_names.key("sub/A.JPG", True) == label_names.key("SUB/a.png", True)


def test_two_photos_of_a_list_never_have_one_label(two):
    assert len(lists.load(two / "list.json")) == 2  # without labels, names do not matter
    source = lists.load(two / "list.json", labels=two / "labels")
    assert len(source) == 1
    assert source[0]["labels/edge"].endswith("labels/edge/1.png")
    assert source.dropped.counts == {"name used twice": 1}
    (line,) = source.dropped.lines()
    assert f"{two}/data/b/1.jpg: its label files would be those of {two}/data/a/1.jpg. Rename" in line
    for folder in "ab":
        label_files.write(two / "labels", "edge", f"{folder}/1.jpg", labels.blank("edge", 6, 8))
    source = lists.load(two / "list.json", images=two / "data", labels=two / "labels")
    assert [source[i]["labels/edge"][-7:] for i in range(2)] == ["a/1.png", "b/1.png"]


def test_data_sets_with_folders_of_their_own_may_use_a_name_each(tmp_path):
    rows = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
        rows.append({"image": "1.jpg", "dataset": name, "caption": name})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    options = {"images": f"{tmp_path}/{{dataset}}"}
    assert len(lists.load(tmp_path / "list.json", labels=f"{tmp_path}/l/{{expert}}/{{dataset}}", **options)) == 2
    assert len(lists.load(tmp_path / "list.json", labels=f"{tmp_path}/l/{{expert}}", **options)) == 1


def test_photos_of_folders_never_have_one_label(tmp_path):
    for name in ("x/a.jpg", "x/a.png", "x/sub/a.jpg", "y/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "labels").mkdir()
    options = {"images": [tmp_path / "x", tmp_path / "y"]}
    assert len(lists.load(**options)) == 4
    source = lists.load(**options, labels=tmp_path / "labels", limit=2)
    assert [source[i]["id"] for i in range(len(source))] == ["a.jpg", "sub/a.jpg"]
    assert lists.load(**options, labels=tmp_path / "labels").dropped.counts == {"name used twice": 2}


def test_a_disk_that_ignores_case_makes_one_file_of_two_names(tmp_path, monkeypatch):
    folder = tmp_path / "Labels"
    assert not label_names.ignores_case(folder / "not/there/yet/{expert}/{dataset}")
    folder.mkdir()
    (tmp_path / "lABELS").symlink_to(folder)  # as if
    assert label_names.ignores_case(folder)
    names = ("a.jpg", "A.jpg", "b.jpg")
    photos = [{"id": name, "name": name, "image": f"photos/{name}", "source": "x"} for name in names]
    dropped = Dropped()
    assert [photo["name"] for photo in label_names.distinct(photos, folder, dropped)] == ["a.jpg", "b.jpg"]
    assert dropped.counts == {"name used twice": 1}
    os.unlink(tmp_path / "lABELS")
    assert len(list(label_names.distinct(photos, folder, dropped))) == 3


def test_photos_of_a_class_never_have_one_label(tmp_path, caplog):
    for name in ("a.jpg", "a.png", "b.heic"):
        (tmp_path / "classes/cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes/cat" / name).touch()
    assert len(fewshot.load(tmp_path / "classes")) == 2
    assert "left out: 1 x image of a kind that is not read (save it as JPEG), the first: " in caplog.text
    with pytest.raises(UserError, match=r"cat/a\.png: its label files would be those of cat/a\.jpg"):
        fewshot.load(tmp_path / "classes", labels=tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder of labels"):
        fewshot.load(tmp_path / "classes", labels=tmp_path / "nowhere")


def test_labels_are_a_folder_or_many_by_the_fields_that_are_known(tmp_path, monkeypatch):
    assert label_names.folder(None) is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert label_names.folder("~") == str(tmp_path)  # which nothing behind it writes out
    assert label_names.folder("~/{expert}") == f"{tmp_path}/{{expert}}"
    assert label_names.folder(tmp_path) == str(tmp_path)
    for several in ("nowhere/{expert}", "nowhere/{dataset}/{expert}"):
        assert label_names.folder(several) == several
    for wrong in ("nowhere", "nowhere/{experts}", "nowhere/{split}"):
        with pytest.raises(UserError, match="no such folder of labels"):
            label_names.folder(wrong)
