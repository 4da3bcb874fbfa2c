"""Labels of another photo, or those that lie in a folder, take the place of a data set's own."""

import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_files, pp
from prismer_jax.datasets import load
from prismer_jax.errors import UserError
from prismer_jax.shards.reader_test import example, write


def test_labels_of_records_are_found_by_the_names_of_their_photos(tmp_path, monkeypatch):
    record = example(1)
    write(tmp_path / "set", [record])
    png = label_files.write(tmp_path / "labels", "depth", record["name"], np.zeros((6, 8, 1), np.uint8))
    of = {"name": "records", "path": str(tmp_path / "set")}
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path / "labels", "~/labels"):
        source = load("altered", of=of, experts="depth", how="folder", labels=folder)
        assert source[0]["labels/depth"] == str(png)


def test_a_folder_of_several_data_sets_is_refused(tmp_path):
    label_files.write(tmp_path / "{expert}/web", "depth", "a.png", np.zeros((6, 8, 1), np.uint8))
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"\{dataset\}: write the name of the data set instead of '\{dataset\}'"):
        load(
            "altered",
            of={"name": "photos", "images": str(tmp_path / "a.png")},
            experts="depth",
            how="folder",
            labels=tmp_path / "{expert}/{dataset}",
        )


def test_labels_of_a_photo_of_other_proportions_are_stretched(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, height, width, fill in (("a", 6, 8, 3), ("b", 9, 5, 7)):
        Image.new("RGB", (width, height)).save(tmp_path / f"photos/{name}.png")
        label_files.write(tmp_path / "labels", "depth", f"{name}.png", np.full((height, width, 1), fill, np.uint8))
    of = {"name": "photos", "images": str(tmp_path / "photos"), "labels": str(tmp_path / "labels")}
    source = load("altered", of=of, experts="depth+edge", how="shuffled")
    chain, rng = pp.build("decode"), np.random.default_rng(0)
    maps = [chain(source[i], rng)["labels/depth"] for i in range(2)]
    assert [(map.shape, set(map.ravel())) for map in maps] == [((6, 8, 1), {7}), ((9, 5, 1), {3})]
