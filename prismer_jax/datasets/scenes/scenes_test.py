import collections
import pathlib
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from prismer_jax import datasets, label_png, labels
from prismer_jax.datasets import scenes
from prismer_jax.datasets.scenes import build
from prismer_jax.errors import UserError
from prismer_jax.shards import records

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
        pixels = label_png.decode(name, example[f"labels/{name}"])
        assert pixels.shape == (SIZE, SIZE, labels.EXPERTS[name].channels)
    classes = example[labels.CLASSES_KEY]
    assert classes.max() < len(scenes.CLASSES)
    found = set(label_png.decode("obj_detection", example["labels/obj_detection"]).ravel()) - {labels.BACKGROUND}
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


def test_the_scenes_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    settings = scenes.Settings("train", SIZE, 2 * build.FEW + 3, 0)
    files = []
    for processes in (1, 3):
        monkeypatch.setattr(build.runtime, "cores", lambda processes=processes: processes)
        made = build.make(settings, str(tmp_path / str(processes)))
        files.append([(row.file, row.sha256) for row in made.shards])
    assert files[0] == files[1]
    assert len(files[0]) == 3
    source = records.load(tmp_path / "3", task="all")
    here = scenes.example(settings, 5)
    assert source[5]["image"] == here["image"]
    assert [source[i]["id"] for i in range(len(source))] == [f"train-{i:06d}" for i in range(settings.count)]


def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path):
    """kill -9 while scenes are rendered; the next load makes what is missing, and no half is taken for a data set."""
    count = 12 * build.FEW
    program = "import sys; from prismer_jax import datasets; "
    program += f"datasets.load('scenes', size=32, count={count}, data_dir=sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL)
    folder = tmp_path / "scenes" / scenes.Settings("train", SIZE, count, 0).name / scenes.VERSION
    while not list(folder.glob("*.json"))[2:]:  # the plan, and the rows of two shards
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    plan = build.plan(scenes.Settings("train", SIZE, count, 0), str(folder))
    whole = {folder / plan.file(shard) for shard in plan.work().done()}
    times = {path: path.stat().st_mtime_ns for path in whole}
    assert not (folder / "manifest.json").exists()
    source = datasets.load("scenes", size=SIZE, count=count, data_dir=tmp_path)
    assert [source[i]["id"] for i in range(len(source))] == [f"train-{i:06d}" for i in range(count)]
    assert {path: path.stat().st_mtime_ns for path in whole} == times


def test_a_build_that_fails_is_one_line_and_the_next_one_succeeds(tmp_path):
    settings = scenes.Settings("train", SIZE, 40, 0)
    folder = tmp_path / "scenes" / settings.name / scenes.VERSION
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: is damaged. Delete the folder"):
        datasets.load("scenes", size=SIZE, count=40, data_dir=tmp_path)
    (folder / "plan.json").unlink()  # what is left is as of a process killed before it wrote its plan
    assert len(datasets.load("scenes", size=SIZE, count=40, data_dir=tmp_path)) == 40


def test_a_data_set_of_an_earlier_version_is_read_as_it_is(tmp_path):
    """Without plan and manifest, as TFDS's own builder wrote them."""
    arguments = {"size": SIZE, "count": 3, "data_dir": tmp_path}
    new = datasets.load("scenes", task="question", **arguments)
    images = [new[i]["image"] for i in range(len(new))]
    folder = pathlib.Path(new.folder)
    for path in [*folder.glob("*-of-*.json"), folder / "manifest.json", folder / "plan.json"]:
        path.unlink()
    before = sorted(folder.iterdir())
    old = datasets.load("scenes", task="question", **arguments)
    assert [old[i]["image"] for i in range(len(old))] == images
    assert sorted(folder.iterdir()) == before


def test_an_epoch_of_scenes_is_counted_in_scenes_and_questions(tmp_path):
    for task, items in (("caption", 3), ("question", 3 * scenes.QUESTIONS)):
        source = datasets.load("scenes", task=task, size=SIZE, count=3, data_dir=tmp_path)
        assert (len(source), source.texts) == (items, items)


def test_processes_that_race_share_the_work(tmp_path):
    count = 3 * build.FEW
    program = "import sys; from prismer_jax import datasets; "
    program += f"source = datasets.load('scenes', size=32, count={count}, data_dir=sys.argv[1]); "
    program += "print(len({source[i]['id'] for i in range(len(source))}))"
    command = [sys.executable, "-c", program, str(tmp_path)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    reports = [process.communicate() for process in racing]
    assert [out.strip() for out, _ in reports] == [str(count)] * 3, reports


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(scenes.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
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
