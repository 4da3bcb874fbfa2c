import argparse

import numpy as np
import pytest
from PIL import Image

from prismer_jax import datasets, label_files
from prismer_jax.datasets import flags
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.labels import BACKGROUND
from prismer_jax.report.photos import sample
from tools import visualize


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "sub/b"):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(path)
        label_files.write(tmp_path / "labels", "depth", f"{name}.jpg", rng.integers(0, 255, (40, 60, 1), np.uint8))
    ids = np.full((40, 60, 1), BACKGROUND, np.uint8)
    ids[10:20, 10:20] = 0
    label_files.write(tmp_path / "labels", "obj_detection", "a.jpg", ids, classes=[3])
    return tmp_path


def run(folder, *arguments):
    output = folder / "out.png"
    visualize.main([*map(str, arguments), "--output", str(output)])
    with Image.open(output) as image:
        return image.convert("RGB")


def test_draws_a_folder_with_labels_found_by_relative_path(photos):
    both = run(photos, "--images", photos / "photos", "--labels", photos / "labels")
    one = run(photos, "--images", photos / "photos" / "a.jpg", "--labels", photos / "labels", "--columns", 1)
    assert both.width > one.width
    depth_only = run(
        photos, "--images", photos / "photos" / "a.jpg", "--labels", photos / "labels", "--experts", "depth"
    )
    dark = [np.all(np.asarray(image) == (26, 28, 34), axis=-1).sum() for image in (one, depth_only)]
    assert dark[0] > 1000 > dark[1]  # the detection map's background


def test_draws_a_data_set(tmp_path, monkeypatch):
    pixels = np.full((8, 8, 3), 200, np.uint8)
    source = [{"id": str(i), "image": pixels, "captions": ["a wall"]} for i in range(30)]
    monkeypatch.setattr(datasets, "load", lambda name, **kwargs: source)
    three, six = (run(tmp_path, "--dataset", "scenes", "--num", n, "--columns", 1) for n in (3, 6))
    assert six.height > 1.8 * three.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of --list"),
        (["--images", "{}/nowhere", "--labels", "{}/labels"], "no such photo"),
        (["--images", "{}/labels/obj_detection/a.json", "--labels", "{}/nowhere"], "no such folder"),
        (["--images", "{}/empty", "--labels", "{}/labels"], "no photos"),
        (["--dataset", "scnes"], "Did you mean 'scenes'"),
        (["--dataset", "scenes", "--num", "-1"], "count photos"),
        (["--dataset", "scenes", "--num", "0", "--num-statistics", "0"], "nothing is left"),
        (["--dataset", "scenes", "--images", "{}/photos"], "a source of its own"),
        (["--dataset", "scenes", "--limit", "5"], "a source of its own: leave out --limit"),
        (["--dataset", "scenes", "--labels", "{}/labels"], "a source of its own: leave out --labels"),
        (["--dataset", "scenes", "--source-name", "mine"], "a source of its own: leave out --source-name"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(photos, arguments, message):
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        visualize.main([*(a.format(photos) for a in arguments), "--output", str(photos / "out.png")])


@pytest.mark.parametrize("broken", [False, True])
def test_a_broken_expert_run_is_seen_before_training(tmp_path, capsys, broken):
    rng = np.random.default_rng(1)
    for i in range(8):
        path = tmp_path / "photos" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(path)
        depth = np.tile(rng.integers(0, 255, (40, 1, 1), np.uint8), (1, 60, 1))
        label_files.write(tmp_path / "labels", "depth", f"{i}.jpg", np.full_like(depth, 7) if broken else depth)
    run(tmp_path, "--images", tmp_path / "photos", "--labels", tmp_path / "labels", "--processes", 1)
    said = capsys.readouterr().out
    assert ("depth: 100% of the maps are of one value" in said) == broken
    assert ("Nothing looks like a bad expert run" in said) != broken
    with Image.open(tmp_path / "out-statistics.png") as image:
        assert image.width > 1000


def test_brackets_in_names_are_printed_as_they_are(capsys):
    dropped = Dropped()
    dropped.add("damaged label", "photos/[old]/a.png")
    visualize.show({}, {}, ["seg_coco: 99% is '[/b]:cat:'."], dropped)
    said = capsys.readouterr().out
    assert "photos/[old]/a.png" in said
    assert "! seg_coco: 99% is '[/b]:cat:'." in said


def test_several_processes_count_what_one_counts(photos):
    source, names = visualize.open_source(visualize_arguments(photos))
    (one, _), (two, _) = (visualize.count(source, ("depth", "obj_detection"), -1, n) for n in (1, 2))
    assert one["depth"].maps == two["depth"].maps
    assert one["obj_detection"].classes == two["obj_detection"].classes == {3: 1}
    assert names["obj_detection"][3]


def visualize_arguments(folder):
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    parser.set_defaults(dataset=None)
    return parser.parse_args(["--images", str(folder / "photos"), "--labels", str(folder / "labels")])


def test_a_photo_never_has_the_labels_of_a_namesake(photos, capsys):
    Image.new("RGB", (60, 40)).save(photos / "photos/a.png")
    run(photos, "--images", photos / "photos", "--labels", photos / "labels")
    assert "2 panels" in capsys.readouterr().out  # a.jpg, whose labels these are, and sub/b.jpg


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_turned_photos_are_drawn_upright(kind, tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right: what is above goes there
    Image.fromarray(pixels).save(tmp_path / f"photo.{kind}", exif=exif)
    source = datasets.load("lists", images=tmp_path / f"photo.{kind}", task="all")
    image = sample(source[0], (), {})["image"]
    assert image.shape == (60, 40, 3)
    assert image[:, 20:].min() == 255
    assert image[:, :20].max() == 0
