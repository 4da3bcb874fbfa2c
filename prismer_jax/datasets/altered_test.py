"""Labels that lie in a folder take the place of a data set's own."""

import numpy as np

from prismer_jax import label_files
from prismer_jax.datasets import load
from prismer_jax.shards.reader_test import example, write


def test_labels_of_records_are_found_by_the_names_of_their_photos(tmp_path):
    record = example(1)
    write(tmp_path / "set", [record])
    png = label_files.write(tmp_path / "labels", "depth", record["name"], np.zeros((6, 8, 1), np.uint8))
    of = {"name": "records", "path": str(tmp_path / "set")}
    source = load("altered", of=of, experts="depth", how="folder", labels=tmp_path / "labels")
    assert source[0]["labels/depth"] == str(png)
