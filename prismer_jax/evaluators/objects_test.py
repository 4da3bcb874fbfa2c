"""Boxes and masks from photos to scores and pictures, by a small converted PaliGemma that is told what to write."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from prismer_jax import caption, datasets, decode, evaluators, pp
from prismer_jax.errors import UserError
from prismer_jax.models.paligemma.conversion import official_table
from prismer_jax.models.paligemma.conversion_test import state_of
from prismer_jax.objects import codec as codecs
from prismer_jax.objects import spelling
from tools import convert

CODES = (0,) * 16
CAT, DOG = (0.0, 0.0, 1.0, 0.25), (0.5, 0.5, 1.0, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared):
    """A folder with two photos of a cat and a dog, their list, a codec to which every mask is full, and a model."""
    folder = tmp_path_factory.mktemp("objects")
    weights = {key: np.zeros(shape) for key, shape in codecs.shapes(8, 4).items()}
    weights["decoder.12.bias"] += 1
    codecs.MaskCodec(weights).save(folder / "codec.npz")
    np.savez(folder / "in.npz", **state_of(official_table, dict(vocab_size=1572)))
    flags = ["--input", str(folder / "in.npz"), "--variant", "tiny", "--output", str(folder / "model")]
    flags += ["--tokenizer", str(shared / "golden" / "paligemma_pp_text" / "toy.model")]
    convert.main(["paligemma", *flags, "--mask-codec", str(folder / "codec.npz")])
    rows = []
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        objects = [
            {"name": "cat", "bbox": [0, 0, 20, 40], "segmentation": [[0, 0, 20, 0, 20, 40, 0, 40]]},
            {"name": "dog", "bbox": [40, 20, 40, 20], "segmentation": [[40, 20, 80, 20, 80, 40, 40, 40]]},
        ]
        rows.append({"id": number, "image": f"photos/{number}.png", "height": 40, "width": 80, "objects": objects})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return caption.Captioner(folder / "model")


def saying(monkeypatch, model, *texts):
    """Makes every model write these texts, one a photo."""

    def generate(*args, **options):
        rows = [model.tokenizer.encode(text) for text in texts]
        tokens = np.zeros((len(rows), 1, max(map(len, rows)) + 1), np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[0, : len(ids) + 1] = [*ids, model.tokenizer.eos]
        return tokens, np.zeros(tokens.shape[:2], np.float32)

    monkeypatch.setattr(decode, "generate", generate)


def evaluated(kind, model, folder, asked, task="photo", **options):
    chain = pp.build(f"decode|stretch(56)|{asked}|prefix_lm(24)", tokenizer=model.tokenizer)
    source = datasets.load("objects", path=folder / "list.jsonl", task=task)
    made = evaluators.build(
        kind, model=model.model, tokenizer=model.tokenizer, source=source, pp=chain, batch_size=2, quiet=True,
        max_new=40, **options,
    )  # fmt: skip
    return dict(made.run(model.variables)), made


def test_detection_is_scored(folder, model, monkeypatch):
    right = spelling.JOINED.join([spelling.spell(DOG, "Dog"), spelling.spell(CAT, "cat")])
    saying(
        monkeypatch,
        model,
        right,
        f"{spelling.spell(CAT, 'dog')} ; <loc0001><loc0002> cat ; {spelling.spell(CAT, 'cat')}",
    )
    scores, made = evaluated("detection", model, folder, "detect(answer=False)", blank=False)
    half = (51 + 50 * 0) / 101  # the wrong dog comes second: one of two objects is found
    assert scores == pytest.approx(
        {"F1": 0.75, "AP": (1 + half) / 2, "AP50": (1 + half) / 2, "AP75": (1 + half) / 2, "broken": 1}
    )
    assert [record["scores"]["F1"] for record in made.records] == [1.0, 0.5]
    assert made.records[0]["question"] in ("detect cat ; dog", "detect dog ; cat")
    assert made.samples(1)[0]["references"] == [f"{spelling.spell(CAT, 'cat')} ; {spelling.spell(DOG, 'dog')}"]


def test_segmentation_is_scored(folder, model, monkeypatch):
    saying(monkeypatch, model, spelling.spell(CAT, "cat", CODES), spelling.spell(DOG, "", CODES[1:]))
    asked = f"segment({str(folder / 'codec.npz')!r}, answer=False)"
    scores, made = evaluated("refcoco", model, folder, asked, "name", codec=str(folder / "codec.npz"))
    # Of four questions two are for the cat, and the answers are the same in both batches; so they are to a blank image.
    assert scores["total"] == 4
    assert scores["invalid"] == scores["invalid_blank"] == 2
    assert scores["miou"] == pytest.approx(0.5, abs=0.01)
    assert scores["boxacc/0.5"] == scores["boxacc/0.75"] == 0.5
    assert [round(record["scores"]["miou"]) for record in made.records] == [1, 0, 1, 0]
    assert [record["question"] for record in made.records] == ["segment cat", "segment dog"] * 2


def test_a_random_model_is_scored_without_complaint(folder, model):
    scores, _ = evaluated("detection", model, folder, "detect(answer=False)")
    assert scores.keys() == {f"{name}{end}" for name in ("F1", "AP", "AP50", "AP75") for end in ("", "_blank")} | {
        "broken"
    }
    assert 0 <= scores["AP"] <= 1


def main(folder, *flags):
    photos = ["--images", str(folder / "photos"), "--prompt", "detect cat ; dog"]
    caption.main(["--checkpoint", str(folder / "model"), *photos, *map(str, flags)])


def test_the_command_prints_draws_and_saves_objects(folder, model, monkeypatch, tmp_path, capsys):
    dog, cat, unknown = spelling.spell(DOG, "dog"), spelling.spell(CAT, "cat", CODES), spelling.spell(DOG, "qwerty")
    text = f"{cat} ; {dog} ; <loc0001> dog ; {unknown}"
    saying(monkeypatch, model, text, "a cat")
    flags = ["--output", tmp_path / "out.json", "--draw", tmp_path / "drawn", "--save-labels", tmp_path / "labels"]
    main(folder, *flags, "--divide-by", 1023)
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith("0.png: cat at 0 0 20 40, 800 pixels")
    assert out.splitlines()[1].endswith("0.png: dog at 40 20 80 40")
    assert out.splitlines()[3].endswith("1.png: a cat")
    assert "1 objects are broken" in err
    assert "no class of the object detector's: qwerty (1)" in err
    first, second = json.loads((tmp_path / "out.json").read_text())
    assert (first["broken"], len(first["objects"]), "objects" in second) == (1, 3, False)
    assert first["objects"][0]["mask"]["size"] == [40, 80]
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "0.png"))
    photo = np.asarray(Image.open(folder / "photos" / "0.png"))
    assert drawn.shape == photo.shape
    assert (drawn[2:38, 2:18] != photo[2:38, 2:18]).any(-1).mean() > 0.9  # the mask
    np.testing.assert_array_equal(drawn[22:38, 22:38], photo[22:38, 22:38])
    source = datasets.load("photos", images=folder / "photos", labels=tmp_path / "labels")
    maps = pp.build("decode")(source[0], np.random.default_rng(0))
    names = {int(maps["labels/obj_detection_classes"][i]) for i in np.unique(maps["labels/obj_detection"]) if i < 255}
    assert len(names) == 2
    assert (maps["labels/seg_coco"] < 255).sum() == 800
    assert "labels/obj_detection" not in source[1]


def test_photos_of_one_name_and_questions_of_one_photo_have_pictures_of_their_own(
    folder, model, monkeypatch, tmp_path, capsys
):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "a.jpg", "b.jpg"):
        Image.new("RGB", (80, 40)).save(tmp_path / "photos" / name)
    saying(monkeypatch, model, *(spelling.spell(box, "cat") for box in (CAT, DOG) * 3))
    asked = ["--question", "detect cat", "detect dog", "--images", str(tmp_path / "photos")]
    files = ["--output", tmp_path / "out.json", "--draw", tmp_path / "drawn", "--save-labels", tmp_path / "labels"]
    caption.main(["--checkpoint", str(folder / "model"), *asked, *map(str, files)])
    results = json.loads((tmp_path / "out.json").read_text())
    pictures = [pathlib.Path(result["picture"]) for result in results]
    assert [path.name for path in pictures] == ["a.png", "a_2.png", "a_3.png", "a_4.png", "b.png", "b_2.png"]
    assert len({path.read_bytes() for path in pictures}) > 1
    for path, result in zip(pictures, results, strict=True):
        _, y1, x2, y2 = map(int, result["objects"][0]["box"])
        assert np.asarray(Image.open(path))[y1 + 15 : y2, x2 - 1].any(-1).all()  # a line of its box
    assert "labels of 4 results were not saved, for their files are those of others: a.jpg, a.png, b.jpg" in (
        capsys.readouterr().err
    )


def test_labels_that_another_prompt_has_made_are_not_added_to(folder, model, monkeypatch, tmp_path):
    saying(monkeypatch, model, spelling.spell(CAT, "cat"), "a cat")
    main(folder, "--save-labels", tmp_path / "labels")
    with pytest.raises(UserError, match=r"holds labels of obj_detection made with .*detect cat ; dog"):
        main(folder, "--save-labels", tmp_path / "labels", "--prompt", "detect dog")


def test_masks_without_a_codec_are_left_out_and_said(folder, model, monkeypatch, capsys):
    saying(monkeypatch, model, spelling.spell(CAT, "cat", CODES), "")
    (folder / "model" / codecs.FILE).rename(folder / "model" / "away")
    try:
        main(folder)
    finally:
        (folder / "model" / "away").rename(folder / "model" / codecs.FILE)
    out, err = capsys.readouterr()
    assert "cat at 0 0 20" in out
    assert "pixels" not in out
    assert "give their codec, --mask-codec vae-oid.npz" in err


def test_bad_flags_are_named(folder):
    with pytest.raises(UserError, match="--divide-by 1000: 1024"):
        main(folder, "--divide-by", 1000)
    with pytest.raises(UserError, match="no such file"):
        main(folder, "--mask-codec", folder / "none.npz")
