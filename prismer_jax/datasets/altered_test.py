"""Labels of another photo, or those that lie in a folder, take the place of a data set's own."""

import numpy as np
from PIL import Image

from prismer_jax import label_files, pp
from prismer_jax.datasets import load
from prismer_jax.shards.reader_test import example, write


def test_labels_of_records_are_found_by_the_names_of_their_photos(tmp_path):
    record = example(1)
    write(tmp_path / "set", [record])
    png = label_files.write(tmp_path / "labels", "depth", record["name"], np.zeros((6, 8, 1), np.uint8))
    of = {"name": "records", "path": str(tmp_path / "set")}
    source = load("altered", of=of, experts="depth", how="folder", labels=tmp_path / "labels")
    assert source[0]["labels/depth"] == str(png)


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
