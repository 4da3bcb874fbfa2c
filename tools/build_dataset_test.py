import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from prismer_jax import datasets, label_files, label_png
from prismer_jax.errors import UserError
from prismer_jax.shards import manifest, metadata
from tools import build_dataset


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """A folder with seven photos, one of them broken and one missing, questions, and labels of two experts."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(7):
        name = f"{i}.jpg"
        if i != 5:
            data = b"<html>" if i == 4 else cv2.imencode(".jpg", np.full((60, 80, 3), 30 * i, np.uint8))[1].tobytes()
            (root / "images" / name).write_bytes(data)
        rows.append({"image": name, "question": f"{i}?", "answer": "yes", "question_id": i, "dataset": "vg"})
        rows += [dict(rows[-1], question=f"{i}!", question_id=10 + i)] * (i % 2)
        label_files.write(root / "labels", "depth", name, np.full((60, 80, 1), i, np.uint8))
        label_files.write(root / "labels", "seg_coco", name, np.full((60, 80, 1), 255, np.uint8))
    (root / "list.json").write_text(json.dumps(rows))
    (root / "labels" / "make_labels.json").write_text(json.dumps({"depth": "trained weights"}))
    return root


def flags(photos: pathlib.Path, *more: str) -> list[str]:
    given = ["--list", "list.json", "--images", "images", "--labels", "labels", "--output", "set"]
    paths = [word if word.startswith("--") else str(photos / word) for word in given]
    return [*paths, "--processes", "1", "--shard-size", "3", *more]


@pytest.mark.parametrize("template", ["labels", "labels/{expert}/{dataset}", "labels/{dataset}/{expert}"])
def test_labels_that_are_nowhere_are_no_labels_of_no_expert(photos, template):
    shutil.rmtree(photos / "labels")
    (photos / "labels").mkdir()
    with pytest.raises(UserError, match="has no folder of any expert"):
        build_dataset.main(flags(photos, "--labels", str(photos / template)))
    build_dataset.main(flags(photos, "--labels", str(photos / template), "--experts", "none"))


@pytest.mark.parametrize("template", ["{dataset}/{expert}", "{dataset}"])
def test_labels_may_lie_by_data_set(photos, capsys, template):
    (photos / "labels").rename(photos / "vg")
    build_dataset.main(flags(photos, "--labels", str(photos / template)))
    assert "labels: depth 5, seg_coco 5" in capsys.readouterr().out


def test_a_list_becomes_a_data_set(photos, capsys):
    build_dataset.main(flags(photos))
    out = capsys.readouterr().out
    assert "5 records in 2 shards, 0 captions, 7 questions" in out
    assert "labels: depth 5, seg_coco 5" in out
    assert "2 were left out" in out
    found = manifest.read(str(photos / "set"))
    assert found.experts == ("depth", "seg_coco")
    assert found.labels == {"depth": "trained weights", "seg_coco": None}
    assert metadata.dropped(found).counts == {"missing photo": 1, "not an image": 1}
    assert found.made_from["list"] == [str(photos / "list.json")]
    assert found.name == "set"
    source = datasets.load("records", path=photos / "set", task="question")
    lists = datasets.load("lists", path=photos / "list.json", images=photos / "images", max_missing=1)
    asked = [lists[i] for i in range(len(lists)) if "4.jpg" not in lists[i]["image"]]
    assert len(source) == len(asked) == 7
    for i, wanted in enumerate(asked):
        got = source[i]
        assert got["image"] == pathlib.Path(wanted["image"]).read_bytes()
        for key in ("question", "answers", "question_id"):
            assert got[key] == wanted[key]
        assert got["weight"] == pytest.approx(wanted["weight"])
    build_dataset.main(["--check", str(photos / "set"), "--processes", "1"])
    assert "whole, 5 records in 2 shards" in capsys.readouterr().out


def test_labels_that_were_cut_are_left_out_and_counted_and_missing_ones_are_not(photos):
    for name, share in (("0", 0), ("1", 0.5), ("2", 0.8)):
        png = photos / "labels/depth" / f"{name}.png"
        data = label_files.encode(np.random.default_rng(0).integers(0, 255, (60, 80, 1), np.uint8))
        png.write_bytes(data[: int(share * len(data))])
    (photos / "labels/depth/3.png").unlink()
    build_dataset.main(flags(photos))
    built = manifest.read(str(photos / "set"))
    assert metadata.dropped(built).counts == {"damaged label": 3, "missing photo": 1, "not an image": 1}
    assert sum(row.labels["depth"] for row in built.shards) == 1
    assert metadata.totals(built)["records"] == 2


def test_a_data_set_can_be_made_from_a_data_set(photos, capsys):
    build_dataset.main(flags(photos))
    build_dataset.main(
        [
            "--dataset-dir",
            str(photos / "set"),
            "--output",
            str(photos / "small"),
            "--max-side",
            "40",
            "--processes",
            "1",
        ]
    )
    found = manifest.read(str(photos / "small"))
    assert (len(found.shards), found.records, found.labels) == (1, 5, {"depth": "trained weights", "seg_coco": None})
    example = datasets.load("records", path=photos / "small", task="all")[1]
    assert cv2.imdecode(np.frombuffer(example["image"], np.uint8), 1).shape == (30, 40, 3)
    assert label_png.decode("depth", example["labels/depth"]).shape == (30, 40, 1)
    assert [q["question"] for q in example["questions"]] == ["1?", "1!"]


def test_a_dry_run_writes_nothing(photos, capsys):
    build_dataset.main(flags(photos, "--dry-run"))
    out = capsys.readouterr().out
    assert "6 samples in 2 shards, 0 of which are there" in out
    assert "GB to write" in out
    assert "hours with 1 processes" in out
    assert "of 6 samples looked at:" in out
    assert "not an image" in out
    assert not (photos / "set").exists()


def test_a_shard_may_be_so_many_bytes(photos):
    build_dataset.main(flags(photos, "--shard-size", "2KB"))
    rows = manifest.read(str(photos / "set")).shards
    assert len(rows) > 2
    build_dataset.main(flags(photos, "--shard-size", "2KB"))  # the same again, whatever the estimate is now
    with pytest.raises(UserError, match="holds shards of another data set"):
        build_dataset.main(flags(photos, "--shard-size", "20KB"))
    (photos / "set" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="holds shards of another data set"):
        build_dataset.main(flags(photos, "--shard-size", "2KB"))


def test_a_list_that_was_edited_is_another_data_set(photos):
    """Its shards would keep what it said before, or, after a stop, be of both."""
    build_dataset.main(flags(photos))
    rows = json.loads((photos / "list.json").read_text())
    (photos / "list.json").write_text(json.dumps([row | {"answer": "no"} for row in rows]))
    with pytest.raises(UserError, match=r"holds shards of another data set \(made_from\.data was .* or delete it"):
        build_dataset.main(flags(photos))


def test_labels_that_were_made_since_make_another_data_set(photos):
    """Those shards that are there would stay without them, and the command would say that all is done."""
    (photos / "labels/depth/2.png").rename(photos / "2.png")
    build_dataset.main(flags(photos))
    build_dataset.main(flags(photos))
    (photos / "2.png").rename(photos / "labels/depth/2.png")
    with pytest.raises(
        UserError, match=r"holds shards of another data set \(made_from\.label_files was .* or delete it"
    ):
        build_dataset.main(flags(photos))


def test_a_damaged_data_set_ends_with_status_1(photos, capsys):
    build_dataset.main(flags(photos))
    shard = next((photos / "set").glob("*-00000-of-*2"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SystemExit) as raised:
        build_dataset.main(["--check", str(photos / "set"), "--processes", "2"])
    assert raised.value.code == 1
    assert "the shard is damaged" in capsys.readouterr().out
    build_dataset.main(flags(photos))  # makes it again
    build_dataset.main(["--check", str(photos / "set"), "--processes", "1"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--images", "."], "Give --output DIR"),
        (["--output", "x"], "Give one of --list"),
        (["--images", ".", "--output", "x", "--shard-size", "much"], "--shard-size much: a number of samples"),
        (["--images", ".", "--output", "x", "--shard-size", "0"], "--shard-size 0"),
        (["--images", ".", "--output", "x", "--processes", "0"], "--processes must be at least 1"),
        (
            ["--images", ".", "--output", "x", "--max-sid", "5"],
            "Unknown argument '--max-sid'. Did you mean '--max-side'",
        ),
        (["--images", ".", "--output", "x", "--experts", "deep"], "Unknown expert 'deep'"),
        (["--check", "nowhere"], "nowhere: has no manifest.json"),
        (["--dataset-dir", "nowhere", "--output", "x"], "nowhere: has no manifest.json"),
    ],
)
def test_bad_flags_are_one_line(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.jpg", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        build_dataset.main(given)


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(photos):
    """With a limit on the size of files, which stands for the disk's space; photos of noise are larger than it."""
    rng = np.random.default_rng(0)
    cv2.imwrite(str(photos / "images" / "6.jpg"), rng.integers(0, 256, (600, 800, 3), np.uint8))
    (photos / "labels").rename(photos / "unused")
    command = [sys.executable, "-m", "tools.build_dataset", *(f for f in flags(photos) if "labels" not in f)]
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *command]  # in blocks of 1024 bytes
    failed = subprocess.run(limited, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "cannot be written (write() failed: File too large). Free space or choose another --output" in failed.stderr
    assert len([line for line in failed.stderr.splitlines() if "left out" not in line]) == 1
    assert sorted(path.suffix for path in (photos / "set").glob("*0000*")) == [".array_record-00000-of-00002", ".json"]
    subprocess.run(command, check=True, capture_output=True)
    assert manifest.read(str(photos / "set")).records == 5


def test_photos_of_one_file_name_never_share_their_labels(tmp_path, capsys):
    rows = []
    for shade, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(
            cv2.imencode(".jpg", np.full((6, 8, 3), shade, np.uint8))[1].tobytes()
        )
        rows.append({"image": f"{tmp_path}/{folder}/1.jpg", "caption": folder})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    label_files.write(tmp_path / "labels", "depth", "1.jpg", np.zeros((6, 8, 1), np.uint8))
    given = ["--list", str(tmp_path / "list.json"), "--labels", str(tmp_path / "labels"), "--processes", "1"]
    build_dataset.main([*given, "--output", str(tmp_path / "set")])
    assert "1 x name used twice, the first: " in capsys.readouterr().out
    (record,) = datasets.load("records", path=tmp_path / "set", task="all")
    assert record["captions"] == ["a"]
