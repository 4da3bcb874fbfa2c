import argparse
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_files, labels
from prismer_jax.datasets.flags import add_arguments, open_source
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from tools import build_dataset


def parse(*flags) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "cache"))  # of the tars' indices


@pytest.fixture
def data(tmp_path):
    """photos/ with a.jpg and b.jpg, captions of a.jpg and of one that is gone, a question, and a tar."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / "photos" / name)
    captions = [{"image": "a.jpg", "caption": "red"}, {"image": "gone.jpg", "caption": "gone"}]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    questions = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "questions": [{"question_id": 3, "image_id": 1, "question": "what colour?"}],
    }
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    answers = {"annotations": [{"question_id": 3, "answers": [{"answer": "red"}] * 10}]}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    karpathy = {"filename": "b.jpg", "imgid": 0, "split": "val", "sentences": [{"raw": "of val"}]}
    (tmp_path / "dataset_mine.json").write_text(json.dumps({"images": [karpathy]}))
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in (("1.jpg", (tmp_path / "photos/a.jpg").read_bytes()), ("1.txt", b"of a tar")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    label_files.write(tmp_path / "labels", "edge", "a.jpg", labels.blank("edge", 6, 8))
    return tmp_path


def test_folders_lists_and_tars_become_sources_of_whole_photos(data):
    photos = open_source(parse("--images", data / "photos", "--labels", data / "labels", "--source-name", "mine"))
    assert [photo["name"] for photo in photos] == ["a.jpg", "b.jpg"]
    assert photos[0]["source"] == "mine"
    assert photos[0]["labels/edge"] == str(data / "labels/edge/a.png")
    listed = open_source(parse("--list", data / "captions.json", "--images", data / "photos"))
    assert [photo["captions"] for photo in listed] == [["red"]]
    assert listed.dropped.counts == {"missing photo": 1}  # and not an error, as of a training's list
    tars = open_source(parse("--tars", data / "00000.tar"))
    assert [photo["captions"] for photo in tars] == [["of a tar"]]
    assert len(open_source(parse("--images", data / "photos", "--limit", 1))) == 1


def test_several_lists_are_joined(data):
    lists = ("--list", data / "questions.json", "--images", data / "photos", "--annotations", data / "answers.json")
    asked = open_source(parse(*lists))
    assert asked[0]["questions"][0]["answers"] == ["red"] * 10
    joined = open_source(parse("--list", data / "captions.json", data / "questions.json", "--images", data / "photos"))
    assert len(joined) == 1
    assert joined[0]["captions"] == ["red"]
    assert joined[0]["questions"][0]["question"] == "what colour?"


def test_splits(data):
    karpathy = ("--list", data / "dataset_mine.json", "--images", data / "photos", "--split")
    assert open_source(parse(*karpathy, "val"))[0]["captions"] == ["of val"]
    with pytest.raises(UserError, match="no split 'test'"):
        open_source(parse(*karpathy, "test"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Give one of --list"),
        (("--images", "a", "--tars", "b"), "Give one of --list"),
        (("--images", "a", "--dataset-dir", "b"), "Give one of --list"),
        (("--images", "a", "--limit", 0), "--limit 0"),
        (("--images", "a", "--annotations", "b"), "--annotations and --split belong to a --list"),
        (("--tars", "a", "--split", "val"), "--annotations and --split belong to a --list"),
        (("--list", "a", "--max-missing", 30), "--max-missing 30.0: a fraction"),
        (("--dataset-dir", "a", "--labels", "b"), "labels and its source inside"),
        (("--images", "nowhere"), "nowhere: no such photo or folder"),
    ],
)
def test_flags_that_do_not_go_together_are_explained(flags, message):
    with pytest.raises(UserError, match=message):
        open_source(parse(*flags))


def test_finished_data_sets_are_sources_too(data):
    finished = data / "finished"
    build_dataset.main(
        ["--list", str(data / "captions.json"), "--images", str(data / "photos"), "--output", str(finished)]
    )
    (photo,) = open_source(parse("--dataset-dir", finished))
    assert (photo["name"], photo["source"], photo["captions"]) == ("a.jpg", "captions", ["red"])
    assert photo["image"] == (data / "photos/a.jpg").read_bytes()
    with pytest.raises(UserError, match="photos"):
        open_source(parse("--dataset-dir", data / "photos"))


def test_what_cannot_be_used_is_left_out_and_counted_by_reason(tmp_path, capsys):
    """Every kind of bad input from the web, through to the report of a finished data set."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    photo, grey = io.BytesIO(), io.BytesIO()
    noise.save(photo, "jpeg")
    Image.new("L", (8, 8)).save(grey, "png")
    photo, grey = photo.getvalue(), grey.getvalue()
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + grey[24:29]
    bomb = grey[:12] + header + struct.pack(">I", zlib.crc32(header)) + grey[33:]
    members = [
        *[("good.jpg", photo), ("good.txt", b"good")],
        *[("page.jpg", b"<html>404</html>"), ("page.txt", b"x")],
        *[("nothing.jpg", b""), ("nothing.txt", b"x")],
        *[("bomb.png", bomb), ("bomb.txt", b"x")],
        *[("cut.jpg", photo[: len(photo) // 2]), ("cut.txt", b"x")],
        *[("latin.jpg", photo), ("latin.txt", b"caf\xe9")],
        *[("good.jpg", photo), ("good.txt", b"again")],
        ("alone.txt", b"x"),
    ]
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    output = tmp_path / "finished"
    build_dataset.main(["--tars", str(tmp_path / "00000.tar"), "--output", str(output), "--processes", "1"])
    assert [photo["captions"] for photo in open_source(parse("--dataset-dir", output))] == [["good"]]
    expected = {
        "caption that is not UTF-8": 1,
        "damaged image": 1,
        "duplicate key in a tar": 2,
        "empty file": 1,
        "not an image": 1,
        "sample without photo": 1,
        "too many pixels": 1,
    }
    assert Dropped.from_json(json.loads((output / "manifest.json").read_text())["totals"]["dropped"]).counts == expected
    report = capsys.readouterr().out
    assert all(f"{count} x {reason}" in report for reason, count in expected.items())


def test_a_photo_stays_without_the_captions_that_cannot_be_used_which_are_counted(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, meta in (
        ("a", '{"caption": ["one", 2, "three"]}'),
        ("b", '{"description": "b"}'),
        ("c", '{"captions": "c"}'),
        ("d", '{"caption": null}'),
    ):
        Image.new("RGB", (8, 6), "red").save(tmp_path / f"photos/{name}.jpg")
        (tmp_path / f"photos/{name}.json").write_text(meta)
    output = tmp_path / "finished"
    build_dataset.main(["--images", str(tmp_path / "photos"), "--output", str(output), "--processes", "1"])
    source = open_source(parse("--dataset-dir", output))
    assert [photo["captions"] for photo in source] == [["one", "three"], [], ["c"], []]
    expected = {"caption that is not a text": 1, "side file without a caption": 1}
    assert Dropped.from_json(json.loads((output / "manifest.json").read_text())["totals"]["dropped"]).counts == expected
