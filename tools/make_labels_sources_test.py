"""The command on lists, tars and data sets, into label files and into data sets; and on disks that do not take them."""

import errno
import io
import json
import os
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prismer_jax import datasets, label_png, labels
from prismer_jax.datasets import lists
from prismer_jax.errors import UserError, run_main
from prismer_jax.experts import testing, weights
from prismer_jax.labelling import label_stores, recording
from prismer_jax.shards import check, metadata, records
from tools import make_labels


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    for module in (make_labels, weights):
        monkeypatch.setattr(module, "EXPERTS", testing.TOYS)


def jpeg(seed, height=30, width=40):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Two tars of five photos with captions; one of them is no photo, one too narrow for detection."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "cache"))  # of their indices
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"tars/{shard:05}.tar", "w") as tar:
            for number in range(5):
                photo = {(0, 3): b"<html>gone</html>", (1, 2): jpeg(9, 3, 2000)}.get((shard, number), jpeg(number))
                for suffix, data in ((".jpg", photo), (".txt", f"photo {shard} {number}".encode())):
                    member = tarfile.TarInfo(f"{shard:05}{number:04}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return tmp_path / "tars"


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos/val").mkdir(parents=True)
    for number in range(4):
        (tmp_path / f"photos/val/{number}.jpg").write_bytes(jpeg(number))
    return tmp_path / "photos"


def run(*flags, experts="depth,obj_detection"):
    """Returns the exit status."""
    try:
        make_labels.main([*map(str, flags), "--experts", experts, "--random-weights", "--shard-size", "3"])
    except SystemExit as exit:
        return exit.code
    return 0


def test_tables_with_photos_inside_are_labelled_as_folders_are(tmp_path):
    table = [{"image": {"bytes": jpeg(number), "path": None}, "caption": f"photo {number}"} for number in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "train.parquet")
    assert run("--parquet", tmp_path / "train.parquet", "--output", tmp_path / "out") == 0
    source = datasets.load("parquet", path=tmp_path / "train.parquet", labels=tmp_path / "out")
    assert source[3]["labels/depth"] == str(tmp_path / "out/depth/train/000000003.png")
    assert run("--parquet", tmp_path / "train.parquet", "--output-dataset", tmp_path / "records") == 0
    assert [example["captions"] for example in whole(tmp_path / "records")] == [[f"photo {n}"] for n in range(4)]


def whole(folder):
    assert check.check(str(folder), 1)
    return records.load(folder, task="all")


def test_photos_of_a_list_that_are_not_among_its_captions_are_left_alone(photos, tmp_path):
    rows = [{"image": f"val/{number}.jpg", "caption": f"photo {number}"} for number in (0, 2)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert run("--list", tmp_path / "list.json", "--images", photos, "--output", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out/depth/val").iterdir()) == ["0.png", "2.png"]
    source = lists.load(tmp_path / "list.json", images=photos, labels=tmp_path / "out")
    assert {"labels/depth", "labels/obj_detection"} <= source[1].keys()


@pytest.fixture
def namesakes(tmp_path):
    """A list of photos of one file name in two folders, by absolute paths."""
    rows = []
    for number, folder in enumerate(("a", "b")):
        (tmp_path / "cameras" / folder).mkdir(parents=True)
        (tmp_path / "cameras" / folder / "1.jpg").write_bytes(jpeg(number))
        rows.append({"image": f"{tmp_path}/cameras/{folder}/1.jpg", "caption": folder})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    return tmp_path / "list.json"


def reasons(folder):
    report = json.loads((folder / "skipped.json").read_text())["reasons"]
    return {reason: entry["count"] for reason, entry in report.items()}


def test_photos_of_one_file_name_never_share_their_labels(namesakes, tmp_path, capsys):
    assert run("--list", namesakes, "--output", tmp_path / "out", experts="depth") == 1
    assert reasons(tmp_path / "out") == {"name used twice": 1}
    assert "b/1.jpg: its label files would be those of " in (said := capsys.readouterr().err)
    assert f"{tmp_path}/cameras/a/1.jpg. Rename one of them, or give as `images` a folder that holds both." in said
    flags = ("--list", namesakes, "--images", tmp_path / "cameras")
    assert run(*flags, "--output", tmp_path / "more", experts="depth") == 0
    assert [png.parent.name for png in sorted((tmp_path / "more/depth").rglob("*.png"))] == ["a", "b"]
    # A data set holds its labels inside, so names do not matter, ...
    assert run("--list", namesakes, "--output-dataset", tmp_path / "set", experts="depth") == 0
    assert [whole(tmp_path / "set")[i]["name"] for i in range(2)] == ["1.jpg", "1.jpg"]
    # ... until label files are made of it.
    assert run("--dataset-dir", tmp_path / "set", "--output", tmp_path / "files", experts="depth") == 1
    assert reasons(tmp_path / "files") == {"name used twice": 1}


def test_names_that_differ_by_case_are_one_where_the_disk_takes_them_for_one(photos, tmp_path):
    (photos / "val/a.jpg").write_bytes(jpeg(7))
    (photos / "val/A.jpg").write_bytes(jpeg(8))
    if len(list((photos / "val").iterdir())) == 5:
        pytest.skip("the photos cannot be told apart on this disk")
    assert run("--images", photos, "--output", tmp_path / "out", experts="depth") == 0
    assert len(list((tmp_path / "out/depth/val").iterdir())) == 6
    (tmp_path / "small").mkdir()
    (tmp_path / "SMALL").symlink_to(tmp_path / "small")  # as such a disk has it
    assert run("--images", photos, "--output", tmp_path / "small", experts="depth") == 1
    assert reasons(tmp_path / "small") == {"name used twice": 1}
    assert len(list((tmp_path / "small/depth/val").iterdir())) == 5


def test_tars_into_label_files_beside_which_they_are_read_again(tars, tmp_path, capsys):
    assert run("--tars", tars, "--output", tmp_path / "out") == 1
    assert len(list((tmp_path / "out/depth").rglob("*.png"))) == 9
    assert len(list((tmp_path / "out/obj_detection").rglob("*.png"))) == 8
    report = json.loads((tmp_path / "out/skipped.json").read_text())
    assert {reason: entry["count"] for reason, entry in report["reasons"].items()} == {
        "not an image": 1,
        "unusable sample": 1,
    }
    assert [(row["image"], row["experts"]) for row in report["photos"]] == [
        ("00000/000000003.jpg", ["depth", "obj_detection"]),
        ("00001/000010002.jpg", ["obj_detection"]),
    ]
    assert "2 photos were skipped" in capsys.readouterr().err


LONG = ("its label files, whose suffixes are longer, would have names too long for the disk", "Give it a shorter name.")


@pytest.mark.parametrize("flags", [(), ("--official",), ("--empty-labels",)])
def test_a_photo_whose_label_has_too_long_a_name_is_skipped_and_all_others_labelled(photos, tmp_path, capsys, flags):
    lengths = (230, 242, 250, 251)  # .jpg and .png of 251 are the longest names, .json is longer by one
    for number, length in enumerate(lengths):
        (photos / ("x" * length + ".jpg")).write_bytes(jpeg(number))
    for _ in range(2):  # the second start finds all others there
        assert run("--images", photos, "--output", tmp_path / "out", *flags) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
        assert len(lines) == 1
        assert all(part in lines[0] for part in ("x" * 251 + ".jpg", *LONG))
        assert reasons(tmp_path / "out") == {"name too long for label files": 1}
        (row,) = json.loads((tmp_path / "out/skipped.json").read_text())["photos"]
        assert (row["image"], row["experts"]) == ("x" * 251 + ".jpg", ["obj_detection"])
        for expert, most in (("depth", 251), ("obj_detection", 250)):
            stems = [len(png.stem) for png in (tmp_path / "out" / expert).rglob("x*.png")]
            assert sorted(stems) == [length for length in lengths if length <= most]
            assert len(list((tmp_path / "out" / expert / "val").glob("*.png"))) == 4
        assert not list((tmp_path / "out").rglob("*.tmp"))


def test_keys_of_tars_too_long_for_label_files_are_skipped_and_in_a_data_set_labelled(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "cache"))
    keys = ("a", "k" * 300)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/00000.tar", "w") as tar:
        for number, key in enumerate(keys):
            for suffix, data in ((".jpg", jpeg(number)), (".txt", b"a photo")):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert run("--tars", tmp_path / "tars", "--output", tmp_path / "out") == 1
    assert reasons(tmp_path / "out") == {"name too long for label files": 1, "no label of depth": 1}
    assert [png.stem for png in (tmp_path / "out/obj_detection").rglob("*.png")] == ["a"]
    source = datasets.load("tars", path=tmp_path / "tars", labels=tmp_path / "out")
    assert ["labels/depth" in source[number] for number in range(2)] == [True, False]
    assert run("--tars", tmp_path / "tars", "--output-dataset", tmp_path / "set") == 0
    assert all("labels/obj_detection" in whole(tmp_path / "set")[number] for number in range(2))


def test_from_raw_tars_to_a_labelled_data_set_in_one_command(tars, tmp_path, capsys):
    out = tmp_path / "set"
    assert run("--tars", tars, "--output-dataset", out) == 1
    source = whole(out)
    assert [source[i]["captions"] for i in range(len(source))] == [
        [f"photo {shard} {number}"]
        for shard in range(2)
        for number in range(5)
        if (shard, number) not in ((0, 3), (1, 2))
    ]
    for example in (source[i] for i in range(len(source))):
        depth = label_png.decode("depth", example["labels/depth"])
        np.testing.assert_array_equal(
            label_png.decode("obj_detection", example["labels/obj_detection"]), np.where(depth > 127, 0, 255)
        )
        assert example[labels.CLASSES_KEY][0] == 7
    assert source.manifest.labels["depth"] == "random weights"
    assert metadata.dropped(source.manifest).counts == {"not an image": 1, "unusable sample": 1}
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record*")}
    report = (out / "skipped.json").read_text()
    capsys.readouterr()
    assert run("--tars", tars, "--output-dataset", out) == 1  # nothing is to do, but the report stands
    assert "labels made" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert (out / "skipped.json").read_text() == report


def test_labels_that_are_in_a_data_set_are_nowhere_else_whoever_was_killed(photos, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    flags = ("--images", photos, "--output-dataset", tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(label_stores.LabelShards, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, experts="depth")
    assert list((tmp_path / "set").rglob("depth.*.zip"))
    assert run(*flags, experts="depth") == 0
    assert len(whole(tmp_path / "set")) == 4
    assert not list((tmp_path / "set").rglob("*.zip"))


def test_a_photo_that_cannot_be_labelled_stays_with_an_empty_label_if_asked(tars, tmp_path):
    assert run("--tars", tars, "--output-dataset", tmp_path / "set", "--empty-labels") == 1
    source = whole(tmp_path / "set")
    assert len(source) == 9  # all but the one that is no photo
    (narrow,) = (source[i] for i in range(9) if source[i]["captions"] == ["photo 1 2"])
    assert "labels/depth" in narrow
    assert (label_png.decode("obj_detection", narrow["labels/obj_detection"]) == labels.BACKGROUND).all()
    assert run("--tars", tars, "--output", tmp_path / "out", "--empty-labels") == 1
    empty = tmp_path / "out/obj_detection/00001/000010002.png"
    assert (label_png.decode("obj_detection", empty.read_bytes()) == labels.BACKGROUND).all()
    assert empty.with_suffix(".json").read_text() == "{}"


def test_labels_added_to_a_data_set_in_a_new_version_of_it(tars, tmp_path):
    assert run("--tars", tars, "--output-dataset", tmp_path / "one", experts="depth") == 1
    flags = ("--dataset-dir", tmp_path / "one", "--output-dataset", tmp_path / "two")
    assert run(*flags, experts="obj_detection") == 1  # needs depth, which the data set has
    one, two = whole(tmp_path / "one"), whole(tmp_path / "two")
    assert (len(one), len(two)) == (9, 8)
    old = {one[i]["id"]: one[i] for i in range(9)}
    for new in (two[i] for i in range(8)):
        assert new.pop("labels/obj_detection")
        assert new.pop(labels.CLASSES_KEY)[0] == 7
        assert new == old[new["id"]]
    assert two.manifest.experts == ("depth", "obj_detection")
    with pytest.raises(UserError, match=r"two: holds shards of another data set \(experts was"):
        run(*flags, experts="depth")


def test_captions_that_come_later_are_another_data_set(photos, tmp_path):
    flags = ("--images", photos, "--output-dataset", tmp_path / "set")
    assert run(*flags, experts="depth") == 0
    (photos / "val/1.txt").write_text("a red cone")
    with pytest.raises(UserError, match=r"set: holds shards of another data set \(made_from\.data was"):
        run(*flags, experts="depth")


def test_label_files_of_a_data_set(tars, tmp_path):
    assert run("--tars", tars, "--output-dataset", tmp_path / "set", experts="depth") == 1
    assert run("--dataset-dir", tmp_path / "set", "--output", tmp_path / "out", experts="depth") == 0
    stored = label_png.decode("depth", whole(tmp_path / "set")[0]["labels/depth"])
    made = label_png.decode("depth", (tmp_path / "out/depth/00000/000000000.png").read_bytes())
    np.testing.assert_array_equal(made, stored)


def test_a_data_set_may_be_remote_if_the_work_is_shared_elsewhere(photos, tmp_path):
    flags = ("--images", photos, "--output-dataset", "memory://sets/one")
    with pytest.raises(UserError, match="give --work DIR on a common disk"):
        run(*flags)
    assert run(*flags, "--work", tmp_path / "work") == 0
    assert len(whole("memory://sets/one")) == 4


def test_a_folder_of_img2dataset_takes_no_labels(photos, tmp_path):
    (photos / "00000_stats.json").write_text("{}")
    before = sorted(photos.iterdir())
    with pytest.raises(UserError, match="holds what img2dataset has fetched"):
        run("--images", photos, "--output", photos)
    assert sorted(photos.iterdir()) == before


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(photos, tmp_path, capsys):
    flags = ("--images", photos, "--output", tmp_path / "out")
    assert run(*flags, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    depth, detection, total = capsys.readouterr().out.splitlines()
    assert depth.startswith("depth: 4 of 4 labels to make, 1 shape to compile (in 4 photos), ")
    assert depth.endswith(" a second by a probe of 8 photos")
    assert detection.startswith("obj_detection: 4 of 4 labels to make")
    assert total.startswith("in all: 4 photos in 2 shards, 8 labels to make, ")
    run(*flags, experts="depth")
    (tmp_path / "out/depth/val/1.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    run(*flags, "--dry-run", experts="depth")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    (depth, _) = capsys.readouterr().out.splitlines()
    assert depth.startswith("depth: 1 of 4 labels to make")
    assert depth.endswith(" a second by shards that are done")


@pytest.mark.parametrize("output", ["--output", "--output-dataset"])
def test_a_full_disk_is_one_line_and_what_was_whole_stays(photos, tmp_path, monkeypatch, capsys, output):
    flags = ["--images", str(photos), output, str(tmp_path / "out"), "--experts", "depth", "--random-weights"]
    flags += ["--shard-size", "2", "--batch-size", "1", "--threads", "1"]
    sync, calls = os.fsync, []

    def full(*args):
        calls.append(args)
        if len(calls) > 8:  # two of the job, two of the record or plan, and two of each file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(*args)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as status:
        run_main(make_labels.main, flags)
    assert status.value.code == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.setattr(os, "fsync", sync)
    run_main(make_labels.main, flags)
    if output == "--output":
        assert len(list((tmp_path / "out/depth/val").iterdir())) == 4
        assert "depth: 2 labels made" in capsys.readouterr().out
    else:
        assert len(whole(tmp_path / "out")) == 4


def test_an_output_that_cannot_be_written_is_one_line(photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as status:
        run_main(run, "--images", photos, "--output", tmp_path / "file/labels")
    assert status.value.code == 2
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write into a folder that is read-only")
def test_a_read_only_output_is_one_line(photos, tmp_path, capsys):
    (tmp_path / "fixed").mkdir(mode=0o555)
    with pytest.raises(SystemExit) as status:
        run_main(run, "--images", photos, "--output", tmp_path / "fixed/labels")
    assert status.value.code == 2
    assert "Permission denied" in capsys.readouterr().err


def test_labels_on_their_way_into_another_data_set_are_not_taken(photos, tmp_path, monkeypatch):
    def killed(stage):
        raise KeyboardInterrupt

    flags = ("--images", photos, "--work", tmp_path / "work", "--output-dataset")
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recording, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, tmp_path / "first", experts="depth")
    for number in range(4):
        (photos / f"val/{number}.jpg").write_bytes(jpeg(9 + number))
    assert run(*flags, tmp_path / "second", experts="depth") == 0
    assert run("--images", photos, "--output-dataset", tmp_path / "fresh", experts="depth") == 0
    second, fresh = whole(tmp_path / "second"), whole(tmp_path / "fresh")
    assert [second[i]["labels/depth"] for i in range(4)] == [fresh[i]["labels/depth"] for i in range(4)]


def test_labels_of_other_weights_on_their_way_into_a_data_set_are_not_taken(photos, tmp_path, monkeypatch, capsys):
    def killed(stage):
        raise KeyboardInterrupt

    flags = ("--images", photos, "--work", tmp_path / "work", "--output-dataset", tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recording, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, experts="depth")
    (tmp_path / "set/plan.json").unlink()
    monkeypatch.setattr(make_labels, "RANDOM", "others")
    capsys.readouterr()
    assert run(*flags, experts="depth") == 0
    assert "depth: 4 labels made, 0 were there" in capsys.readouterr().out


def test_a_command_that_is_refused_leaves_the_labels_on_their_way(photos, tmp_path, monkeypatch, capsys):
    def killed(stage):
        raise KeyboardInterrupt

    flags = ("--images", photos, "--output-dataset", tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recording, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, experts="depth")
    with pytest.raises(UserError, match=r"set: holds shards of another data set \((count|shard_size) was"):
        run(*flags, "--limit", "2", experts="depth")
    capsys.readouterr()
    assert run(*flags, experts="depth") == 0
    assert "depth: all 4 photos were done before" in capsys.readouterr().out
    assert len(whole(tmp_path / "set")) == 4


def test_labels_of_a_source_are_not_mixed_with_those_of_other_weights(photos, tmp_path):
    assert run("--images", photos, "--output", tmp_path / "labels", experts="depth") == 0
    (tmp_path / "labels/depth/val/1.png").unlink()
    flags = ("--images", photos, "--labels", tmp_path / "labels", "--output-dataset", tmp_path / "set")
    record = tmp_path / "labels/make_labels.json"
    record.write_text(record.read_text().replace("random weights", "others"))
    with pytest.raises(UserError, match=r"labels of depth made with others, not with random weights\. Leave depth out"):
        run(*flags, experts="depth")
    assert run(*flags, experts="obj_detection") == 1  # of the one photo without depth
    assert whole(tmp_path / "set").manifest.labels["depth"] == "others"


def test_labels_that_lie_elsewhere_serve_experts_and_go_into_the_data_set(photos, tmp_path):
    assert run("--images", photos, "--output", tmp_path / "labels", experts="depth") == 0
    flags = ("--images", photos, "--labels", tmp_path / "labels")
    assert run(*flags, "--output", tmp_path / "more", experts="obj_detection") == 0
    assert len(list((tmp_path / "more").rglob("*.png"))) == 4
    assert run(*flags, "--output-dataset", tmp_path / "set", experts="obj_detection") == 0
    source = whole(tmp_path / "set")
    assert source.manifest.labels["depth"] == "random weights"
    assert {"labels/depth", "labels/obj_detection"} <= source[3].keys()
