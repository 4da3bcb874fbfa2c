"""Photos in, captions out, with experts of a few parameters that label them on the way."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import prismer_jax
from prismer_jax import caption, datasets, label_files, label_png
from prismer_jax.caption_test import write_model
from prismer_jax.errors import UserError
from prismer_jax.experts import testing, weights
from prismer_jax.labelling import cached
from prismer_jax.report import photos as report_photos

QUESTIONS = ["what is it", "is it red"]  # of two photos each, everywhere: one program is compiled


def export(folder, experts, **changes):
    """Writes a small model with these experts; returns the folder."""
    look = f"labels_for({'+'.join(experts) or 'none'!r})|decode|resize(32, 48)"
    prompts = {"caption": "caption_prompt('A')|tokenize(3)", "question": "question_prompt|tokenize(9)"}
    decode = dict(method="greedy", max_new=3)
    tasks = {name: dict(pp=f"{look}|{prompt}", decode=decode) for name, prompt in prompts.items()}
    return write_model(folder, tasks, experts=experts, **changes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "model", ["depth", "obj_detection"])


def drawn(toy, seed=0):
    """Weights with which the labels differ much from pixel to pixel."""
    return jax.tree.map(lambda x: 9 * x, toy.random_variables(seed))


@pytest.fixture
def experts(tmp_path, monkeypatch):
    """A folder of weights of two toys; the cache folder is the test's own."""
    for module in (cached, weights):
        monkeypatch.setattr(module, "EXPERTS", testing.TOYS)
    monkeypatch.setenv("PRISMER_CACHE_DIR", str(tmp_path / "cache"))
    for kind in testing.TOYS.values():
        weights.export(tmp_path / "experts" / kind.name, kind(), drawn(kind()))
    return tmp_path / "experts"


@pytest.fixture
def photos(tmp_path):
    for number, size in enumerate([(30, 40), (40, 30)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"photos/p{number}.png")
    return tmp_path / "photos"


def without_names(results):
    return [{key: value for key, value in row.items() if key != "image"} for row in results]


def test_the_package_is_light():
    code = "import prismer_jax, sys; print('jax' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
    assert prismer_jax.load is prismer_jax.captioner.load
    with pytest.raises(AttributeError, match="has no attribute 'loat'"):
        prismer_jax.loat  # noqa: B018


def test_photos_are_files_bytes_images_or_arrays(exported, experts, photos, caplog):
    model = prismer_jax.load(exported, experts)
    expected = model.answer(photos, QUESTIONS)
    files = [photos / "p0.png", photos / "p1.png"]
    images = [Image.open(file) for file in files]
    for given in (
        files,
        [files[0].read_bytes(), images[1]],
        [np.asarray(image) for image in images],
    ):
        assert without_names(model.answer(given, QUESTIONS)) == without_names(expected)
    mixed = model.answer([files[0], images[1]], QUESTIONS)
    assert [row["image"] for row in mixed] == [*[str(files[0])] * 2, *["1"] * 2]
    assert model.left_out == []
    assert "does without" not in caplog.text


def test_labels_are_the_experts_and_are_kept(exported, experts, photos, monkeypatch):
    model = prismer_jax.load(exported, experts)
    found = model.label(photos)
    toy = testing.ToyDepth()
    for row in found:
        pixels = np.asarray(Image.open(photos / row["image"]))
        (depth,) = toy.predict([pixels], drawn(toy))
        np.testing.assert_array_equal(row["labels"]["depth"], depth.map)
        np.testing.assert_array_equal(row["labels"]["obj_detection"] == 0, depth.map > 127)
        assert row["objects"] == [7]
    blind = prismer_jax.load(exported).answer(photos, QUESTIONS)
    said = model.answer(photos, QUESTIONS)
    assert all(a["scores"] != b["scores"] for a, b in zip(said, blind, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(testing.ToyDepth, "run", None)  # all is in the cache: no network runs
        again = prismer_jax.load(exported, experts)
        assert again.answer(photos, QUESTIONS) == said
        (one,) = again.label((photos / "p1.png").read_bytes())
        np.testing.assert_array_equal(one["labels"]["depth"], found[1]["labels"]["depth"])
    other = testing.ToyDepth()
    weights.export(experts / "depth2", other, drawn(other, 1))
    (experts / "depth").rename(experts / "depth1")
    (experts / "depth2").rename(experts / "depth")
    changed = prismer_jax.load(exported, experts).label(photos)  # other weights: other labels, also of what needs them
    for one, before in zip(changed, found, strict=True):
        for name in ("depth", "obj_detection"):
            assert (one["labels"][name] != before["labels"][name]).any()


def test_a_photo_that_changes_before_it_is_labelled_gives_no_label_to_what_it_was(experts, photos, caplog):
    labeller = cached.Cached(["depth"], experts)
    source = datasets.load("photos", images=photos / "p0.png", experts=())
    before, steps = (photos / "p0.png").read_bytes(), labeller.one_by_one(source)
    next(steps)  # from here on the photo is known by its bytes
    shutil.copy(photos / "p1.png", photos / "p0.png")
    *_, (_, labelled) = steps
    assert "labels/depth" not in labelled[0]
    assert "p0.png: changed while it was labelled. Ask again." in caplog.text
    (photos / "p0.png").write_bytes(before)
    assert labeller.said(labeller.label(source)[0])["labels"]["depth"].shape == (30, 40, 1)


def test_one_line_says_which_experts_are_missing(exported, experts, photos, caplog):
    prismer_jax.load(exported).answer(photos, QUESTIONS)
    assert [record.message for record in caplog.records] == [
        "The model does without its experts, depth, obj_detection: give their weights, or labels."
    ]
    caplog.clear()
    (experts / "obj_detection").rename(experts / "elsewhere")
    found = prismer_jax.load(exported, experts).label(photos / "p0.png")
    assert list(found[0]["labels"]) == ["depth"]
    assert [record.message for record in caplog.records] == [
        f"The model does without the experts obj_detection (no weights in {experts}: python -m tools.download experts)."
    ]
    caplog.clear()
    (experts / "elsewhere").rename(experts / "obj_detection")
    (experts / "depth").rename(experts / "elsewhere")
    prismer_jax.load(exported, experts).label(photos / "p0.png")
    assert "obj_detection (it needs depth)" in caplog.text


def test_classes_of_the_models_own_are_no_experts_classes(tmp_path, experts, photos, caplog):
    own = export(tmp_path / "own", ["depth", "obj_detection"], classes={"obj_detection": ("cone", "sphere")})
    (found,) = prismer_jax.load(own, experts).label(photos / "p0.png")
    assert list(found["labels"]) == ["depth"]
    assert "obj_detection (its classes are this model's own)" in caplog.text


def test_a_photo_that_an_expert_cannot_label_is_captioned_without(exported, experts, photos, caplog):
    wide = np.zeros((2, 400, 3), np.uint8)
    (found,) = prismer_jax.load(exported, experts).label(wide)
    assert list(found["labels"]) == ["depth"]
    assert "No label of obj_detection: image 0: 2x400 pixels are too narrow" in caplog.text


def test_transparency_and_turned_photos_are_as_in_files(exported, experts, tmp_path):
    model = prismer_jax.load(exported, experts)
    half = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    file, *others = model.label([tmp_path / "half.png", half, Image.fromarray(half)])
    for other in others:
        np.testing.assert_array_equal(other["labels"]["depth"], file["labels"]["depth"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(half[..., :3]).save(tmp_path / "turned.png", exif=exif)
    (turned,) = model.label(Image.open(tmp_path / "turned.png"))
    assert turned["labels"]["depth"].shape == (30, 20, 1)
    grey = model.label([half[..., 0], half[..., :1]])
    np.testing.assert_array_equal(grey[0]["labels"]["depth"], grey[1]["labels"]["depth"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "There is no photo: give files"),
        (np.zeros((4, 4, 3)), r"None of the 1 photos .* image 0: an array of float64 \[4, 4, 3\] is no photo"),
        (b"\0\0\0\x18ftypheic", "image of example 0: not a readable image .HEIC, AVIF or JPEG XL"),
        (b"<html>", "a web page"),
        ("https://example.org/a.jpg", r"https://example.org/a.jpg: is remote, where only a path on a disk will do"),
        ("nowhere.jpg", "nowhere.jpg: no such photo"),
    ],
)
def test_what_is_no_photo_is_one_line(exported, experts, given, message):
    model = prismer_jax.load(exported, experts)
    with pytest.raises(UserError, match=message) as error:
        model.label(given)
    assert "\n" not in str(error.value)


def test_what_cannot_be_labelled_is_one_line(exported, experts, tmp_path, photos, caplog):
    with pytest.raises(UserError, match="Load it with their weights: experts=FOLDER"):
        prismer_jax.load(exported).label(photos)
    with pytest.raises(UserError, match="nowhere: no such folder of experts' weights"):
        prismer_jax.load(exported, tmp_path / "nowhere")
    with pytest.raises(UserError, match="found by the names of photos, which those in memory lack"):
        prismer_jax.load(exported).answer(b"x", QUESTIONS, labels=tmp_path)
    bare = prismer_jax.load(export(tmp_path / "bare", []), experts)
    assert "the model has no experts, and does not use" in caplog.text
    with pytest.raises(UserError, match="This model has no experts"):
        bare.label(photos)


@pytest.mark.slow
def test_the_command_labels_answers_saves_and_draws(exported, experts, photos, tmp_path, capsys):
    flags = ["--checkpoint", str(exported), "--images", str(photos), "--experts", str(experts)]
    flags += ["--question", *QUESTIONS, "--save-labels", str(tmp_path / "labels")]
    caption.main([*flags, "--picture", str(tmp_path / "out/sheet.png"), "--output", str(tmp_path / "out.json")])
    said = json.loads((tmp_path / "out.json").read_text())
    model = prismer_jax.load(exported, experts)
    assert said == model.answer(photos, QUESTIONS) == model.answer(photos, QUESTIONS, labels=tmp_path / "labels")
    record = json.loads((tmp_path / "labels/make_labels.json").read_text())
    assert record == {"depth": "trained weights", "obj_detection": "trained weights"}
    for row in model.label(photos):
        path = label_files.path_of(tmp_path / "labels", "depth", row["image"])
        np.testing.assert_array_equal(label_png.decode("depth", path.read_bytes()), row["labels"]["depth"])
        assert json.loads((tmp_path / "labels/obj_detection" / f"{path.stem}.json").read_text()) == {"0": 7}
    sheet = np.asarray(Image.open(tmp_path / "out/sheet.png"))
    assert sheet.shape[1] > 2 * report_photos.PHOTO  # two columns
    assert (sheet == (26, 28, 34)).all(-1).any()  # the background of the map of objects
    assert "sheet.png: 4 of 4 results" in capsys.readouterr().err


def test_photos_of_one_name_do_not_share_the_labels_that_are_saved(exported, experts, photos, tmp_path, caplog):
    files = [tmp_path / folder / "p0.png" for folder in ("one", "two")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        shutil.copy(photos / f"p{number}.png", file)
    flags = ["--checkpoint", str(exported), "--experts", str(experts), "--save-labels", str(tmp_path / "labels")]
    caption.main([*flags, "--images", *map(str, [*files, files[0]])])
    (row,) = prismer_jax.load(exported, experts).label(files[0])
    saved = label_files.path_of(tmp_path / "labels", "depth", "p0.png").read_bytes()
    np.testing.assert_array_equal(label_png.decode("depth", saved), row["labels"]["depth"])
    (line,) = [record.message for record in caplog.records if "not saved" in record.message]
    assert line.startswith(f"{files[1]}: not saved in ")
    assert line.endswith(f"those of {files[0]}.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experts", "x", "--labels", "y"], "Give --labels, which were made before, or --experts"),
        (["--experts", "nowhere"], "nowhere: no such folder of experts' weights"),
        (["--picture", "sheet.txt"], "Unknown kind of picture '.txt'"),
        (["--images", "https://example.org/a.jpg"], "is remote, where only a path on a disk will do"),
        (["--images", "."], r"has no photos \(.jpg"),
    ],
)
def test_flags_that_cannot_be_are_one_line(exported, photos, flags, message, monkeypatch, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises((UserError, SystemExit), match=message) as error:
        caption.main(["--checkpoint", str(exported), "--images", str(photos), *flags])
    assert "\n" not in str(error.value)
