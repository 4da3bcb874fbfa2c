"""Folders of photos through the command, with experts of a few parameters; what is bad is named, the rest labelled."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_files, label_png, labels
from prismer_jax.datasets import lists, scenes
from prismer_jax.errors import UserError
from prismer_jax.experts import testing, weights
from prismer_jax.experts.expert import Label, SquareExpert
from prismer_jax.files import progress
from prismer_jax.pp import build
from prismer_jax.shards import schema
from prismer_jax.weights import safe, write
from tools import make_labels, visualize

SIZES = {"a.jpg": (30, 40), "sub/b.png": (40, 30), "sub/deep/c.webp": (9, 16)}


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    for module in (make_labels, weights):
        monkeypatch.setattr(module, "EXPERTS", testing.TOYS)


@pytest.fixture
def photos(tmp_path):
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        save(tmp_path / "photos" / name, np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8))
    return tmp_path / "photos"


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def run(photos, *flags, experts="depth", source=("--random-weights",)):
    out = photos.parent / "labels"
    make_labels.main(["--images", str(photos), "--output", str(out), "--experts", experts, *source, *map(str, flags)])
    return out


def skipped(photos, *flags, **kwargs):
    """Runs with photos that cannot be labelled; returns {image: what is wrong with it} and the counts by reason."""
    with pytest.raises(SystemExit) as status:
        run(photos, *flags, **kwargs)
    assert status.value.code == 1
    report = json.loads((photos.parent / "labels/skipped.json").read_text())
    counts = {reason: entry["count"] for reason, entry in report["reasons"].items()}
    return {row["image"]: row["problem"] for row in report["photos"]}, counts


def test_labels_lie_in_the_official_layout_and_say_what_they_are(photos, capsys):
    out = run(photos, "--batch-size", 2, experts="obj_detection,depth")  # in the order that they need
    examples = lists.load(images=photos, labels=out)
    for i in range(len(examples)):
        example = build("decode")(examples[i], np.random.default_rng(0))
        size = SIZES[example["id"]]
        assert example["image"].shape[:2] == size
        assert example["labels/depth"].shape == (*size, 1)
        # The toy detects where depth is more than half.
        instances = np.where(example["labels/depth"] > 127, 0, 255)
        np.testing.assert_array_equal(example["labels/obj_detection"], instances)
        assert example[labels.CLASSES_KEY][0] == 7
    assert json.loads((out / "skipped.json").read_text()) == {"reasons": {}, "photos": []}
    said = capsys.readouterr()
    assert said.err.count("these labels mean nothing") == 2  # first and last
    assert "depth: 3 labels made, 0 were there" in said.out
    assert "the device was busy" in said.out


def test_a_second_run_makes_only_what_is_missing(photos, capsys):
    out = run(photos, "--limit", 1)
    assert [path.name for path in out.rglob("*.png")] == ["a.png"]
    before = (out / "depth/a.png").stat().st_mtime_ns
    run(photos)
    assert "depth: 2 labels made, 1 were there" in capsys.readouterr().out
    assert (out / "depth/a.png").stat().st_mtime_ns == before
    run(photos)
    assert "depth: all 3 photos were done before" in capsys.readouterr().out


def test_recheck_makes_again_exactly_the_labels_that_were_deleted_or_cut(photos, capsys):
    out = run(photos, experts="depth,obj_detection")
    files = {path: path.read_bytes() for path in sorted(out.rglob("*/**/*.*")) if ".make_labels" not in path.parts}
    assert len(files) == 9
    times = {path: path.stat().st_mtime_ns for path in files}
    deleted, cut, table = out / "depth/a.png", out / "depth/sub/b.png", out / "obj_detection/sub/deep/c.json"
    deleted.unlink()
    for path in (cut, table):
        path.write_bytes(files[path][:-1])
    run(photos, experts="depth,obj_detection")  # what was done is done
    assert not deleted.exists()
    capsys.readouterr()
    run(photos, "--recheck", experts="depth,obj_detection")
    said = capsys.readouterr().out
    assert "depth: 2 labels made, 1 were there" in said
    assert "obj_detection: 1 labels made, 2 were there" in said
    assert {path: path.read_bytes() for path in files} == files
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {deleted, cut, table, table.with_suffix(".png")}


def test_a_folder_of_marks_serves_one_output_at_a_time(photos, capsys):
    work = photos.parent / "work"
    first = run(photos, "--work", work)
    first.rename(photos.parent / "first")
    run(photos, "--work", work, "--output", photos.parent / "second")
    assert "depth: 3 labels made, 0 were there" in capsys.readouterr().out.splitlines()[-1]
    assert len(list((photos.parent / "second/depth").rglob("*.png"))) == 3


def test_a_process_that_was_stopped_for_long_takes_no_marks_of_another_job_for_its_own(photos, monkeypatch):
    out, write = photos.parent / "labels", label_files.write

    def stopped(*args, **kwargs):  # for so long that a job of other photos begins and ends
        monkeypatch.setattr(label_files, "write", write)
        for lease in (out / ".make_labels/leases").iterdir():
            os.utime(lease, (1, 1))
        run(photos, "--limit", 1, "--shard-size", 1)
        return write(*args, **kwargs)

    monkeypatch.setattr(label_files, "write", stopped)
    with pytest.raises(UserError, match=r"labels: other processes have begun here with other settings \(photos was 1,"):
        run(photos, "--shard-size", 1, "--threads", 1, "--batch-size", 1)
    run(photos, "--shard-size", 1)
    assert len(list((out / "depth").rglob("*.png"))) == 3


KILLED = """
import sys, time
from prismer_jax import label_files
from prismer_jax.files import progress
from prismer_jax.experts import testing
from tools import make_labels
make_labels.EXPERTS, write = testing.TOYS, label_files.write
label_files.write = lambda *args, **kwargs: (time.sleep(0.3), write(*args, **kwargs))
make_labels.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_only_whole_labels_and_goes_on(photos):
    for i in range(30):
        save(photos / f"more{i}.png", np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8))
    out = photos.parent / "labels"
    flags = ["--images", str(photos), "--output", str(out), "--experts", "depth", "--random-weights"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *flags])
    while len(found := list((out / "depth").rglob("*.png"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in found}
    assert len(found) < 33
    for path in (out / "depth").rglob("*.png"):
        assert label_png.decode("depth", path.read_bytes()) is not None
    run(photos)
    assert len(list((out / "depth").rglob("*.png"))) == 33
    assert all(path.stat().st_mtime_ns == made for path, made in there.items())


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(photos, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    run(photos)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("depth: ")]
    assert [line.split(",")[0] for line in lines[:3]] == ["depth: 1 of 3", "depth: 2 of 3", "depth: 3 of 3"]
    assert lines[-1].endswith(" 0:00 left")


def test_labels_of_random_weights_are_not_taken_for_real_ones(photos):
    run(photos)
    state = {"head.weight": np.ones((1, 3), np.float32), "head.bias": np.zeros(1, np.float32)}
    write.torch_file(photos.parent / "toy_depth.pt", state)
    with pytest.raises(UserError, match="holds labels of depth made with random weights, not with trained weights"):
        run(photos, source=("--checkpoints", str(photos.parent)))


def test_official_files_and_converted_folders_label_alike(photos):
    state = {"head.weight": np.ones((1, 3), np.float32), "head.bias": -np.ones(1, np.float32)}
    write.torch_file(photos.parent / "toy_depth.pt", state)
    source = ("--checkpoints", str(photos.parent))
    out = run(photos, source=source)
    first = (out / "depth/a.png").read_bytes()
    weights.export(photos.parent / "depth", testing.ToyDepth(), weights.load(testing.ToyDepth(), photos.parent))
    (photos.parent / "toy_depth.pt").unlink()
    (out / "depth/a.png").unlink()
    run(photos, "--recheck", source=source)
    assert (out / "depth/a.png").read_bytes() == first


def test_photos_of_every_kind_and_shape_are_labelled(photos):
    rng = np.random.default_rng(0)
    grey, turned = rng.integers(0, 256, (20, 30), np.uint8), Image.Exif()
    turned[0x0112] = 6
    save(photos / "grey.png", grey)
    save(photos / "alpha.png", rng.integers(0, 256, (20, 30, 4), np.uint8))
    save(photos / "sixteen.png", grey.astype(np.uint16) * 256)
    save(photos / "dot.png", np.zeros((1, 1, 3), np.uint8))
    save(photos / "line.png", np.zeros((10, 20000, 3), np.uint8))
    save(photos / "turned.jpg", rng.integers(0, 256, (20, 30, 3), np.uint8), exif=turned)
    out = run(photos)
    sizes = {path.stem: Image.open(path).size for path in (out / "depth").glob("*.png")}
    assert sizes == {
        "a": (40, 30),
        "grey": (30, 20),
        "alpha": (30, 20),
        "sixteen": (30, 20),
        "dot": (1, 1),
        "line": (20000, 10),
        "turned": (20, 30),  # upright, as everything that reads photos here makes them
    }


KINDS = ("png", "jpg", "tiff", "webp")


def test_photos_are_labelled_as_they_look_whatever_their_orientation(photos):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10] = 255
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in KINDS:
            save(photos / f"{kind}/{orientation}.{kind}", pixels, exif=exif)
    out = run(photos)
    for orientation in range(1, 9):
        png, *others = (np.asarray(Image.open(out / f"depth/{kind}/{orientation}.png")) for kind in KINDS)
        assert png.shape == ((30, 20) if orientation > 4 else (20, 30))
        dark, bright = np.quantile(png, [0.1, 0.9])
        assert bright - dark > 20
        for other in others:
            assert other.shape == png.shape
            assert np.abs(other.astype(int) - png).mean() < (bright - dark) / 8  # turned otherwise: more than a quarter


def test_what_cannot_be_labelled_is_named_and_listed_and_the_rest_labelled(photos, capsys):
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "page.jpg").write_bytes(b"<html>not found</html>")
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:-200])
    save(photos / "line.png", np.zeros((10, 20000, 3), np.uint8))
    save(photos / "a.png", np.zeros((9, 9, 3), np.uint8))
    problems, counts = skipped(photos, experts="depth,obj_detection")
    said = capsys.readouterr().err
    assert "the file is empty" in problems["zero.jpg"]
    assert "not a readable image (a web page)" in problems["page.jpg"]
    assert "cut.jpg" in problems["cut.jpg"]
    assert "line.png: 10x20000 pixels are too narrow" in problems["line.png"]  # detection only: depth has it
    assert "its label files would be those of a.jpg" in problems["a.png"]
    assert counts == {
        "damaged image": 1,
        "empty file": 1,
        "name used twice": 1,
        "not an image": 1,
        "unusable sample": 1,
    }
    assert "its label files would be those of a.jpg" in skipped(photos, experts="depth")[0]["a.png"]  # nor later
    out = photos.parent / "labels"
    assert {path.stem for path in (out / "obj_detection").rglob("*.png")} == {"a", "b", "c"}
    assert {path.stem for path in (out / "depth").rglob("*.png")} == {"a", "b", "c", "line"}
    assert all(said.count(f"skipped: {problem}") == 1 for problem in problems.values())
    assert f"5 photos were skipped, wholly or by an expert: see {out / 'skipped.json'}" in said


def test_a_bigger_image_than_allowed_is_refused(photos, monkeypatch):
    monkeypatch.setattr("prismer_jax.labelling.pipeline.MAX_PIXELS", 1000)
    problems, counts = skipped(photos)
    assert "40x30 pixels are more" in problems["a.jpg"]
    assert counts == {"too many pixels": 2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experts", "dept"], "Did you mean 'depth'"),
        (["--experts", "edge"], "Unknown expert 'edge'"),  # no toy of that name
        (["--experts", "none"], "--experts none: names no expert"),
        (["--experts", "student:none"], "--experts student:none: names no expert"),
        (["--batch-size", "0"], "at least 1"),
        (["--limit", "0"], "at least 1"),
        (["--dtype", "float64"], "dtype"),
        (["--images", "{}/nowhere"], "no such photo or folder"),
        (["--images", "{}/empty"], "has no photos"),
        (["--output", "{}/photos/labels"], "lies in the folder of the photos"),
        (["--checkpoints", "{}"], "either --checkpoints"),
        (["--experts", "obj_detection"], "needs labels of depth.*add depth to --experts"),
    ],
)
def test_wrong_usage_is_one_line(photos, flags, message):
    (photos.parent / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        run(photos, *(flag.format(photos.parent) for flag in flags))


def test_missing_weights_are_found_before_anything_is_labelled(photos):
    state = {"head.weight": np.ones((1, 3), np.float32), "head.bias": np.zeros(1, np.float32)}
    write.torch_file(photos.parent / "toy_depth.pt", state)
    with pytest.raises(UserError, match=r"has no weights of obj_detection: neither toy_detection\.pt"):
        run(photos, experts="depth,obj_detection", source=("--checkpoints", str(photos.parent)))
    assert not list((photos.parent / "labels").rglob("*.png"))


def test_visualize_draws_what_was_made(photos, tmp_path):
    out = run(photos, experts="depth,obj_detection")
    visualize.main(["--images", str(photos), "--labels", str(out), "--output", str(tmp_path / "sheet.png")])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300


def test_exact_labels_of_scenes_go_the_same_way(tmp_path, monkeypatch):
    """Experts that know the scenes write as all experts do; what is read again is what the data set itself holds."""
    settings = scenes.Settings("train", 48, 3, 0)
    examples = {f"{i}.jpg": scenes.example(settings, i) for i in range(settings.count)}
    (tmp_path / "photos").mkdir()
    for name, example in examples.items():
        (tmp_path / "photos" / name).write_bytes(example["image"])
    decode = build("decode")
    photos = {name: decode({"image": e["image"]}, np.random.default_rng(0))["image"] for name, e in examples.items()}

    class Oracle(SquareExpert):
        file, network, size = "none.pt", testing.Net, (48, 48)

        def apply(self, variables, batch):
            return {"photo": batch["image"]}

        def finish(self, output, size, needed):
            (example,) = (examples[name] for name in photos if np.array_equal(photos[name], output["photo"]))
            png, instances, texts = example["labels"][self.name], example["classes"], example["words"]
            return Label(label_png.decode(self.name, png), instances, example["word_features"], texts)

    oracles = {name: type("Oracle", (Oracle,), {"name": name}) for name in labels.PAPER}
    monkeypatch.setattr(make_labels, "EXPERTS", oracles)
    out = run(tmp_path / "photos", experts="all")
    source = lists.load(images=tmp_path / "photos", labels=out)
    assert len(source) == len(examples)
    assert sum(len(example["words"]) for example in examples.values())  # signs among them
    for read in map(source.__getitem__, range(len(source))):
        example = examples[read["id"]]
        record = schema.encode(**example)  # what the training reads
        kept = {name: record["labels"][name] for name in labels.PAPER}
        theirs = decode({"image": example["image"]} | {f"labels/{k}": v for k, v in kept.items()}, None)
        ours = decode(read, None)
        for name in labels.PAPER:
            np.testing.assert_array_equal(ours[f"labels/{name}"], theirs[f"labels/{name}"])
        instances, features = record["labels"]["obj_detection_classes"], record["labels"]["ocr_detection_features"]
        np.testing.assert_array_equal(ours[labels.CLASSES_KEY][: len(instances)], instances)
        np.testing.assert_array_equal(ours[labels.WORDS_KEY][: len(features)], features)
        assert list(ours["words"]) == record["labels"]["ocr_detection_words"]


class ToyWords(testing.ToyDepth):
    """Reads one word in every photo."""

    name = "ocr_detection"

    def finish(self, output, size, needed):
        map = np.full((*size, 1), labels.BACKGROUND, np.uint8)
        map[:2] = 0
        return Label(map, features=np.ones((1, labels.FEATURES)), words=["stop"])


def test_official_labels_have_words_that_the_official_code_reads_and_name_what_it_cannot(photos, monkeypatch, capsys):
    turned = Image.Exif()
    turned[0x0112] = 6
    save(photos / "turned.jpg", np.zeros((20, 30, 3), np.uint8), exif=turned)
    save(photos / "d.jpg.jpg", np.zeros((20, 30, 3), np.uint8))
    monkeypatch.setattr(make_labels, "EXPERTS", testing.TOYS | {"ocr_detection": ToyWords})
    out = run(photos, experts="depth,ocr_detection")
    assert len(list(out.rglob("*.npz"))) == 5
    assert not list(out.rglob("*.pt"))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    capsys.readouterr()

    problems, counts = skipped(photos, "--official", experts="depth,ocr_detection")
    assert "ocr_detection: 3 labels were there" in capsys.readouterr().out
    assert "EXIF turns it" in problems["turned.jpg"]
    assert "looks for its labels as d.png.png" in problems["d.jpg.jpg"]
    assert counts == {"name that the official code takes otherwise": 1, "photo turned by EXIF": 1}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    table = safe.load_tree(out / "ocr_detection/sub/deep/c.pt")
    assert table[0]["text"] == "stop"
    assert table[0]["features"].tolist() == [1.0] * labels.FEATURES
    with pytest.raises(UserError, match="--official is about label files"):
        make_labels.main(["--images", str(photos), "--output-dataset", "x", "--random-weights", "--official"])
