import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from prismer_jax import label_files, label_png, label_rows, labels
from prismer_jax.errors import BadSample
from prismer_jax.pp.image import read_image
from prismer_jax.shards import ingest

EXPERTS = tuple(labels.EXPERTS)
PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
DEEP = cv2.imencode(".png", PHOTO.astype(np.uint16) * 256 + (255 - PHOTO))[1].tobytes()  # PNG, 16 bits a channel


def encoded(photo: np.ndarray | Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(photo)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def prepare(image: bytes | str, max_side: int | None = None, **more) -> dict:
    return ingest.prepare({"id": "x", "image": image, "captions": [], "questions": []} | more, EXPERTS, max_side)


def turned(orientation: int, format: str = "JPEG", photo: np.ndarray = PHOTO) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo, format, exif=exif)


@pytest.mark.parametrize(
    "photo",
    [encoded(PHOTO, "JPEG"), encoded(PHOTO[..., 0], "JPEG"), encoded(PHOTO, "PNG"), encoded(PHOTO, "WEBP"), turned(6)],
    ids=["jpeg", "grey", "png", "webp", "turned"],
)
def test_a_photo_that_all_can_read_stays_as_it_was(photo):
    assert prepare(photo)["image"] == photo


@pytest.mark.parametrize(
    "photo",
    [
        encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(PHOTO).convert("P"), "PNG"),
        encoded(Image.fromarray(PHOTO).convert("RGBA"), "PNG"),
        encoded(Image.fromarray(PHOTO).convert("P"), "GIF"),
        encoded(PHOTO[..., 0].astype(np.uint16) * 257, "PNG"),
        DEEP,
        encoded(PHOTO, "TIFF"),
        encoded(PHOTO, "PNG", transparency=(1, 2, 3)),
    ],
    ids=["cmyk", "palette", "transparent", "gif", "16 bits", "16 bits in colour", "tiff", "colour key"],
)
def test_any_other_photo_becomes_a_jpeg_of_the_same_colours(photo):
    made = prepare(photo)["image"]
    assert Image.open(io.BytesIO(made)).format == "JPEG"
    before, after = (read_image(data, 10**6, "x").astype(int) for data in (photo, made))
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 4  # noise is the worst that JPEG can meet


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_turned_photo_looks_the_same_in_a_record(format, orientation):
    y, x = np.mgrid[0:30, 0:40]
    photo = turned(orientation, format, np.stack([x * 6, y * 8, 255 - x * 3 - y * 3], -1).astype(np.uint8))
    loaded = Image.open(io.BytesIO(photo))
    loaded.load()
    expected = np.asarray(ImageOps.exif_transpose(loaded))
    for max_side in (None, 39):  # as it is or made anew, and always made anew
        stored = prepare(photo, max_side)["image"]
        made = Image.open(io.BytesIO(stored))
        assert made.format == ("JPEG" if format == "TIFF" or max_side else format)
        pixels = read_image(stored, 10**6, "x")
        small = np.asarray(Image.fromarray(expected).resize(pixels.shape[1::-1], Image.Resampling.LANCZOS))
        assert (pixels.shape == expected.shape) == (max_side is None)
        assert np.abs(pixels.astype(int) - small).mean() < 3


@pytest.mark.parametrize(
    "photo",
    [
        encoded(Image.fromarray(PHOTO).convert("P"), "PNG"),
        encoded(Image.fromarray(PHOTO[..., 0]).convert("LA"), "PNG"),
        encoded(PHOTO[..., 0], "PNG", bits=4),
        encoded(PHOTO[..., 0], "JPEG"),
        DEEP,
    ],
    ids=["palette", "grey with alpha", "4 bits", "grey", "16 bits in colour"],
)
def test_tfds_reads_the_colours_that_the_loader_reads(photo):
    """Without TensorFlow, TFDS (4.9.10) gives indices of palettes and the low bytes of 16 bits."""
    stored = prepare(photo)["image"]
    theirs = tfds.features.Image(shape=(None, None, 3)).decode_example_np(stored)
    np.testing.assert_array_equal(theirs, read_image(stored, 10**6, "x"))
    assert np.abs(theirs.astype(int) - read_image(photo, 10**6, "x")).mean() < 5  # JPEG of noise


@pytest.mark.parametrize("name", ["seg_coco", "normal"])
def test_tfds_reads_the_map_that_the_loader_reads_of_a_label_with_a_palette(name):
    """Its indices are ids, but no normals."""
    label = Image.new("P", (40, 30))
    label.putpalette([5, 5, 5, 2, 2, 2])
    label.putpixel((0, 0), 1)
    given = encoded(label, "PNG")
    map = label_png.decode(name, given)
    assert (map[0, 0, 0], map[1, 1, 0]) == ((1, 0) if name == "seg_coco" else (2, 5))
    stored = prepare(encoded(PHOTO, "JPEG"), **{f"labels/{name}": given})["labels"][name]
    feature = tfds.features.Image(shape=(None, None, map.shape[2]))
    np.testing.assert_array_equal(feature.decode_example_np(stored), map)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photo_becomes_small_upright_and_its_labels_with_it(orientation):
    photo = turned(orientation)
    height, width = read_image(photo, 10**6, "x").shape[:2]
    map = np.arange(height * width, dtype=np.uint8).reshape(height, width, 1) % 130
    made = prepare(photo, 20, **{"labels/seg_coco": label_files.encode(map), "labels/depth": map})
    small = read_image(made["image"], 10**6, "x")
    assert small.shape == ((15, 20, 3) if orientation == 1 else (20, 15, 3))
    label = label_png.decode("seg_coco", made["labels"]["seg_coco"])
    assert label.shape == (*small.shape[:2], 1)
    np.testing.assert_array_equal(label, map[1::2, 1::2])  # the pixel under each centre: ids are never mixed
    np.testing.assert_array_equal(label, label_png.decode("depth", made["labels"]["depth"]))
    assert prepare(photo, 40)["image"] == photo


def test_labels_keep_every_pixel_and_their_tables(tmp_path):
    rng = np.random.default_rng(1)
    maps = {name: rng.integers(0, 100, (30, 40, row.channels), np.uint8) for name, row in labels.EXPERTS.items()}
    classes, features = list(range(100, 200)), rng.standard_normal((100, 64)).astype(np.float16)
    words = [f"wörd {i}" for i in range(100)]
    for name, map in maps.items():
        label_files.write(tmp_path, name, "a.jpg", map, classes=classes, features=features, words=words)
    made = prepare(encoded(PHOTO, "JPEG"), **label_files.locate(tmp_path, EXPERTS, "a.jpg"))
    for name, map in maps.items():
        np.testing.assert_array_equal(label_png.decode(name, made["labels"][name]), map)
    assert made["classes"].tolist() == classes
    assert made["words"] == words
    np.testing.assert_array_equal(made["word_features"], features)


def test_an_empty_label_file_becomes_an_empty_map():
    made = prepare(encoded(PHOTO, "JPEG"), **{"labels/ocr_detection": b"", labels.WORDS_KEY: labels.no_words()})
    assert (label_png.decode("ocr_detection", made["labels"]["ocr_detection"]) == 255).all()
    assert made["words"] == []
    assert len(made["word_features"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b""}, "image of example x: the file is empty"),
        ({"image": "nowhere.jpg"}, "nowhere.jpg: No such file"),
        ({"image": b"<html>"}, "not a readable image"),
        ({"labels/depth": np.zeros((30, 30, 1), np.uint8)}, "does not fit"),
        ({"labels/seg_coco": label_files.encode(np.full((30, 40, 1), 200, np.uint8))}, "beyond the 133"),
        ({"labels/edge": b"\x89PNG\r\n\x1a\n"}, "cannot be read as an image"),
        ({"captions": ["\ud83d"]}, "no Unicode"),
        ({"questions": [{"question": "q", "answers": ["\ud83d"]}]}, "no Unicode"),
        ({"questions": [{"question": "q", "answers": [], "question_id": "\ud83d"}]}, "no Unicode"),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample(change, message):
    with pytest.raises(BadSample, match=message):
        prepare(**{"image": encoded(PHOTO, "JPEG")} | change)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(label_png, "MAX_PIXELS", 1000)
    bomb = encoded(np.zeros((40, 40), np.uint8), "PNG")
    with pytest.raises(BadSample, match="40x40 pixels are more"):
        prepare(bomb)


def test_the_longest_photo_that_is_taken_can_be_made_smaller_with_its_labels():
    photo = encoded(np.zeros((label_png.MAX_SIDE, 2, 3), np.uint8), "PNG")
    made = prepare(photo, 64, **{"labels/depth": np.zeros((label_png.MAX_SIDE, 2, 1), np.uint8)})
    assert label_png.decode("depth", made["labels"]["depth"]).shape == (64, 1, 1)
    with pytest.raises(BadSample, match="on a side"):
        prepare(encoded(np.zeros((label_png.MAX_SIDE + 1, 2, 3), np.uint8), "PNG"), 64)


def test_decoding_is_that_of_the_loader():
    photo = cv2.imencode(".jpg", PHOTO[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(
        read_image(prepare(photo)["image"], 10**6, "x"), cv2.imdecode(np.frombuffer(photo, np.uint8), 1)[..., ::-1]
    )


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_maps_are_stored_alike_however_they_were_given(tmp_path, name):
    rng = np.random.default_rng(2)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (30, 40, 3), np.uint8), (0, 0), 5)
    map = smooth if name == "normal" else smooth[..., :1]
    ours, theirs = label_files.encode(map), encoded(map.squeeze(), "PNG")
    (tmp_path / "label.png").write_bytes(ours)
    for given in (ours, theirs, map, str(tmp_path / "label.png")):
        stored = prepare(encoded(PHOTO, "JPEG"), **{f"labels/{name}": given})["labels"][name]
        assert stored == label_rows.encode(map)
