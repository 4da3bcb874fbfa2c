import collections
import os
import signal
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from prismer_jax import datasets, label_files, labels
from prismer_jax.datasets import scenes
from prismer_jax.datasets.scenes import build
from prismer_jax.datasets.scenes import workers as scenes_workers
from prismer_jax.errors import UserError

SIZE = 32


def test_a_scene_is_a_function_of_seed_split_and_index():
    one = scenes.Settings("train", SIZE, 10, 0)
    again = scenes.Settings("train", SIZE, 50, 0)  # the count does not matter
    first, second = scenes.example(one, 4), scenes.example(again, 4)
    for key in ("id", "image", "labels", "captions", "questions", "words"):
        assert first[key] == second[key]
    for other in (scenes.Settings("val", SIZE, 10, 0), scenes.Settings("train", SIZE, 10, 1)):
        assert scenes.example(other, 4)["image"] != first["image"]


def test_items_have_the_form_of_examples(tmp_path):
    source = datasets.load("scenes", split="train", task="question", size=SIZE, count=3, data_dir=tmp_path)
    assert len(source) == 3 * scenes.QUESTIONS
    example = source[scenes.QUESTIONS + 2]
    assert example["id"] == "train-000001"
    assert example["question_id"] == scenes.QUESTIONS + 2
    assert len(example["answers"]) == 10
    assert example["question_type"] in scenes.QUESTION_TYPES
    captions = datasets.load("scenes", split="train", task="caption", size=SIZE, count=3, data_dir=tmp_path)
    assert len(captions) == 3
    assert len(captions[1]["captions"]) == 5
    whole = datasets.load("scenes", split="train", task="all", size=SIZE, count=3, data_dir=tmp_path)[1]
    assert whole["questions"][2]["question"] == example["question"]
    for name in labels.PAPER:
        pixels = label_files.decode(name, example[f"labels/{name}"])
        assert pixels.shape == (SIZE, SIZE, labels.EXPERTS[name].channels)
    classes = example[labels.CLASSES_KEY]
    assert classes.max() < len(scenes.CLASSES)
    found = set(label_files.decode("obj_detection", example["labels/obj_detection"]).ravel()) - {labels.BACKGROUND}
    assert found == set(np.flatnonzero(classes >= 0))


def test_splits_share_no_scene(tmp_path):
    train, val = (datasets.load("scenes", split=s, size=SIZE, count=20, data_dir=tmp_path) for s in scenes.SPLITS)
    assert (len(train), len(val)) == (20, 2)
    assert not {train[i]["image"] for i in range(20)} & {val[i]["image"] for i in range(2)}


def test_grain_reads_it_with_worker_processes(tmp_path):
    source = datasets.load("scenes", size=SIZE, count=6, data_dir=tmp_path)
    source[0]
    chain = grain.MapDataset.source(source).map(lambda example: example["id"]).to_iter_dataset()
    assert list(chain) == [f"train-{i:06d}" for i in range(6)]
    workers = chain.mp_prefetch(grain.MultiprocessingOptions(num_workers=2))
    assert list(workers) == [f"train-{i:06d}" for i in range(6)]


def test_the_scenes_do_not_depend_on_the_number_of_workers():
    settings = scenes.Settings("train", SIZE, scenes_workers.FEW + 3, 0)
    one, three = (list(scenes_workers.render(settings, workers)) for workers in (1, 3))
    assert [x["id"] for x in one] == [x["id"] for x in three] == [f"train-{i:06d}" for i in range(settings.count)]
    assert [x["image"] for x in one] == [x["image"] for x in three]
    assert [x["questions"] for x in one] == [x["questions"] for x in three]
    here = scenes.example(settings, 5)
    assert one[5]["image"] == here["image"]
    assert one[5]["labels"] == here["labels"]


def test_an_interrupted_build_leaves_nothing_and_the_next_one_is_whole(tmp_path):
    """kill -9 while scenes are rendered; the next load takes away the remains and builds again."""
    count = 200
    program = "import sys; from prismer_jax import datasets; "
    program += f"datasets.load('scenes', size=32, count={count}, data_dir=sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL)
    folder = tmp_path / "scenes" / scenes.Settings("train", SIZE, count, 0).name
    deadline = time.time() + 300
    while not list(folder.glob("incomplete.*/*")) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(folder.glob("incomplete.*"))
    assert not (folder / scenes.VERSION).exists()
    source = datasets.load("scenes", size=SIZE, count=count, data_dir=tmp_path)
    assert [source[i]["id"] for i in range(len(source))] == [f"train-{i:06d}" for i in range(count)]
    assert sorted(path.name for path in folder.iterdir()) == [scenes.VERSION, "lock"]


def test_a_failing_worker_stops_the_build_and_nothing_remains(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes_workers, "_WORKER", "import sys; sys.exit(1)")
    with pytest.raises(RuntimeError, match="has died"):
        datasets.load("scenes", size=SIZE, count=100, data_dir=tmp_path)
    assert [path.name for path in (tmp_path / "scenes").glob("*/*")] == ["lock"]


def test_processes_that_race_get_the_same_whole_data(tmp_path):
    program = "import sys; from prismer_jax import datasets; "
    program += "source = datasets.load('scenes', size=32, count=40, data_dir=sys.argv[1]); "
    program += "print(len({source[i]['id'] for i in range(len(source))}))"
    command = [sys.executable, "-c", program, str(tmp_path)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    reports = [process.communicate() for process in racing]
    assert [out.strip() for out, _ in reports] == ["40"] * 3, reports
    assert sum("Rendered" in err for _, err in reports) == 1  # one builds, the others wait


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match="PRISMER_DATA_DIR"):
        datasets.load("scenes", size=SIZE, count=100, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split"),
        ({"task": "captions"}, "'caption'"),
        ({"size": 8}, "size=8"),
        ({"count": 0}, "count=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_reported(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        datasets.load("scenes", data_dir=tmp_path, **arguments)


def test_an_unknown_data_set_is_reported():
    with pytest.raises(UserError, match="'scenes'"):
        datasets.load("scene")


def test_the_data_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    assert scenes.data_folder() == tmp_path
    assert scenes.data_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("PRISMER_DATA_DIR")
    assert scenes.data_folder().name == "data"
