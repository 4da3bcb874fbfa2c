import json
import subprocess
import sys

import numpy as np
import pytest

from prismer_jax import label_files, label_png, labels
from prismer_jax.errors import BadSample, UserError
from prismer_jax.shards import records
from prismer_jax.shards.reader_test import example
from tools.bench import loader
from tools.bench.experts_test import WORKER


class Photos:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 4:
            raise BadSample("damaged")
        photo = example(index)
        if index == 5:  # has no words
            photo = {k: v for k, v in photo.items() if k not in ("labels/ocr_detection", labels.WORDS_KEY, "words")}
        maps = {f"labels/{name}": label_files.encode(labels.blank(name, 6, 8)) for name in ("depth", "obj_detection")}
        return photo | maps | ({"labels/ocr_detection": maps["labels/depth"]} if index != 5 else {})


def test_both_get_the_same_photos_and_labels(tmp_path):
    assert loader.write(Photos(), tmp_path) == 9
    rows = json.loads((tmp_path / "photos/coco_karpathy_train.json").read_text())
    ours = records.Source(tmp_path / "records", "all")
    assert len(rows) == len(ours) == 9
    for row, mine in zip(rows, (ours[i] for i in range(9)), strict=True):
        assert (tmp_path / "photos/vqav2" / row["image"]).read_bytes() == mine["image"]
        assert row["caption"] == mine["captions"][0]
        path = tmp_path / "labels/depth/vqav2" / row["image"].replace(".jpg", ".png")
        np.testing.assert_array_equal(
            label_png.decode("depth", path.read_bytes()), label_png.decode("depth", mine["labels/depth"])
        )
        side = tmp_path / "labels/ocr_detection/vqav2" / row["image"].replace(".jpg", ".npz")
        assert side.exists() == ("words" in mine)


def test_too_few_photos_are_an_error(tmp_path):
    with pytest.raises(UserError, match="too few"):
        loader.write([example(0)], tmp_path)


def test_the_fastest_round_of_each_counts():
    def fake(seconds, size):
        return [sys.executable, "-c", WORKER.format(seconds=seconds, last=size)]

    workers = loader.beside([fake([9, 2, 1, 4], 1000), fake([9, 8, 5, 7], 45_000)], 0)
    assert loader._line("train", workers, 10).split() == ["train", "10.0", "2.0", "5.0", "1", "45", "45.0"]
    assert loader._line("train", workers[:1], 10).split() == ["train", "10.0", "-", "-", "1", "-", "-"]


def test_our_worker_tells_seconds_and_bytes(tmp_path):
    loader.write(Photos(), tmp_path)
    command = [sys.executable, "-m", "tools.bench.loader", str(tmp_path), "train"]
    ran = subprocess.run(command, input="\n\n", capture_output=True, text=True, check=True)
    ready, *seconds, size = ran.stdout.split()
    assert ready == "ready"
    assert all(float(s) > 0 for s in seconds)
    assert len(seconds) == 2
    assert int(size) * 37 < 42_704_896  # the official Dataset's sample, measured by reference/run_dataset.py
