import concurrent.futures
import gc
import io
import json
import os
import re
import sys
import zlib

import cv2
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_files, label_png, label_rows, labels, registry
from prismer_jax.datasets import captions
from prismer_jax.errors import BadSample, UserError


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "png")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 30000 x 30000 pixels."""
    data = bytearray(png(np.zeros((4, 4), np.uint8)))
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("expert", labels.EXPERTS)
def test_written_labels_are_read_back(tmp_path, expert):
    row = labels.EXPERTS[expert]
    rng = np.random.default_rng(0)
    label = rng.integers(0, 100, (5, 7, row.channels), dtype=np.uint8)
    features = rng.standard_normal((2, 64)).astype(np.float16)
    sides = {"instances": {"classes": [7, 700]}, "words": {"features": features, "words": ["stop", "über"]}}
    path = label_files.write(tmp_path, expert, "train/a.b.jpg", label, **sides.get(row.embed, {}))
    assert path == tmp_path / expert / "train/a.b.png"
    example = label_files.locate(tmp_path, [expert], "train/a.b.jpg")
    np.testing.assert_array_equal(label_png.decode(expert, path.read_bytes()), label)
    assert example[f"labels/{expert}"] == str(path)
    if row.embed == "instances":
        assert example[labels.CLASSES_KEY].tolist() == [7, 700] + [-1] * 254
    if row.embed == "words":
        np.testing.assert_array_equal(example[labels.WORDS_KEY][:2], features)
        assert example["words"] == ["stop", "über"]
    assert [p.suffix for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_official_folders_have_a_data_set_inside_the_expert(tmp_path):
    path = label_files.path_of(f"{tmp_path}/{{expert}}/vqav2", "edge", "val2014/x.jpg")
    assert path == tmp_path / "edge/vqav2/val2014/x.png"


@pytest.mark.parametrize("image", ["/sub/x.png", "//sub/x.png", "../sub/x.png", "sub/../x.png", "/", ".."])
def test_no_name_of_an_image_leads_out_of_the_folder(tmp_path, image):
    path = label_files.path_of(tmp_path / "labels", "depth", image)
    assert ".." not in path.parts
    assert path.is_relative_to(tmp_path / "labels")


def test_a_missing_label_is_the_background_and_a_file_of_zero_bytes_was_cut(tmp_path):
    label_files.write(tmp_path, "depth", "x.jpg", labels.blank("depth", 4, 4))
    assert list(label_files.locate(tmp_path, labels.PAPER, "x.jpg")) == ["labels/depth"]
    for name in labels.EXPERTS:
        png = label_files.path_of(tmp_path, name, "x.jpg")
        png.parent.mkdir(exist_ok=True)
        png.write_bytes(b"")
        with pytest.raises(BadSample, match=rf"{name}/x\.png: has zero bytes.*--recheck.*delete it") as error:
            label_files.locate(tmp_path, [name], "x.jpg")
        assert error.value.reason == "damaged label"
        assert not label_files.is_whole(tmp_path, name, "x.jpg")
    assert label_png.decode("obj_detection", b"") is None  # of a record
    assert (labels.blank("obj_detection", 2, 3) == 255).all()
    assert labels.blank("normal", 2, 3).shape == (2, 3, 3)


@pytest.mark.parametrize("length", [250, 251, 252, 300])
def test_a_label_whose_name_is_too_long_for_the_disk_is_not_there(tmp_path, length):
    name = "a" * length + ".jpg"
    for expert in ("depth", "obj_detection"):
        label_files.write(tmp_path, expert, "other.jpg", labels.blank(expert, 4, 4))  # so that there are folders
        assert label_files.locate(tmp_path, [expert], name) == {}
        assert not label_files.is_whole(tmp_path, expert, name)
    if length < 252:  # the longest of a PNG
        label_files.write(tmp_path, "depth", name, labels.blank("depth", 4, 4))
        assert label_files.is_whole(tmp_path, "depth", name)
        assert list(label_files.locate(tmp_path, ["depth", "obj_detection"], name)) == ["labels/depth"]


def test_images_without_objects_or_words_are_legal(tmp_path):
    empty = labels.blank("ocr_detection", 4, 4)
    for expert in ("obj_detection", "ocr_detection"):
        label_files.write(tmp_path, expert, "x.jpg", empty)
    example = label_files.locate(tmp_path, labels.PAPER, "x.jpg")
    assert (example[labels.CLASSES_KEY] == -1).all()
    assert (example[labels.WORDS_KEY] == 0).all()


def test_grey_maps_are_read_from_every_kind_of_8_bit_png():
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(ids)
    palette.putpalette(bytes(range(255, 255 - 36, -1)))  # colours that say nothing of the ids
    buffer = io.BytesIO()
    palette.save(buffer, "png")
    for data in (png(ids), png(ids, "RGB"), buffer.getvalue()):
        np.testing.assert_array_equal(label_png.decode("seg_coco", data)[..., 0], ids)


@pytest.mark.parametrize(
    ("expert", "data", "message"),
    [
        ("depth", png(np.zeros((4, 4), np.uint16)), "mode I"),
        ("depth", png(np.eye(4, dtype=np.uint8)[..., None] * np.array([1, 2, 3], np.uint8)), "in colour"),
        ("normal", png(np.zeros((4, 4), np.uint8)), "RGB"),
        ("seg_coco", png(np.full((4, 4), 140, np.uint8)), "133"),
        ("seg_ade", b"not a png", "cannot be read"),
        ("seg_ade", bomb(), "exceeds limit"),
        ("edge", png(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))[:2000], "cannot be read"),
    ],
    ids=["16-bit", "colour", "grey normals", "beyond the classes", "garbage", "bomb", "truncated"],
)
def test_unusable_maps_name_the_file(expert, data, message):
    with pytest.raises(BadSample, match=f"x.png: .*{message}"):
        label_png.decode(expert, data, "x.png")


@pytest.mark.parametrize("height", [1, 15, 16, 17, 47, 64])
@pytest.mark.parametrize("expert", ["depth", "normal"])
def test_stored_maps_are_pngs_that_all_read_alike(expert, height):
    shape = (height, 9, labels.EXPERTS[expert].channels)
    label = np.random.default_rng(height).integers(0, 256, shape, np.uint8)
    data = label_rows.encode(label)
    np.testing.assert_array_equal(label_png.decode(expert, data), label)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(shape), label)
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).reshape(shape)
    np.testing.assert_array_equal(read[..., ::-1], label)
    assert label_png.decode(expert, data).flags.writeable


def test_what_resembles_a_stored_map_is_read_as_what_it_is():
    label = np.random.default_rng(0).integers(0, 256, (20, 9, 1), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(label[..., 0]).save(buffer, "png", compress_level=0)  # stored, with filters of its own
    assert buffer.getvalue()[37:44] in label_png.STORED
    np.testing.assert_array_equal(label_png.decode("depth", buffer.getvalue()), label)
    damaged = bytearray(label_rows.encode(label))
    damaged[43:46] = b"\7\7\7"
    with pytest.raises(BadSample, match="cannot be read"):
        label_png.decode("depth", bytes(damaged), "x")


def test_ids_up_to_the_last_class_and_the_background_are_valid():
    label_png.decode("seg_coco", png(np.array([[0, 132, 255]], np.uint8)))


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": 1}', '{"300": 1}', '{"0": null}', '{"0": {}}', '{"0": 1e300}'])
def test_malformed_detection_tables_name_the_file(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadSample, match=r"x\.json"):
        label_files.read_classes(tmp_path / "x.json")


def test_side_files_are_required_and_pickles_are_not_opened(tmp_path):
    for expert in ("obj_detection", "ocr_detection"):
        label_files.write(tmp_path, expert, "x.jpg", labels.blank(expert, 4, 4))
    (tmp_path / "obj_detection/x.json").unlink()
    with pytest.raises(BadSample, match=r"x\.json: missing"):
        label_files.locate(tmp_path, ["obj_detection"], "x.jpg")
    (tmp_path / "ocr_detection/x.npz").unlink()
    with pytest.raises(BadSample, match=r"x\.npz: missing"):
        label_files.locate(tmp_path, ["ocr_detection"], "x.jpg")
    (tmp_path / "ocr_detection/x.pt").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(BadSample, match="pickled"):
        label_files.locate(tmp_path, ["ocr_detection"], "x.jpg")
    (tmp_path / "ocr_detection/x.npz").write_bytes(b"")
    with pytest.raises(BadSample, match=r"x\.npz: not an \.npz"):
        label_files.locate(tmp_path, ["ocr_detection"], "x.jpg")
    np.savez(tmp_path / "ocr_detection/x.npz", features=np.zeros((2, 3)), words=["a", "b"])
    with pytest.raises(BadSample, match=r"x\.npz: not an \.npz"):
        label_files.locate(tmp_path, ["ocr_detection"], "x.jpg")


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (np.ones((2, 64), ml_dtypes.bfloat16), r"[<|]V2 \[2, 64\]"),  # whose name np.save (NumPy 2.4) does not store
        (np.ones((2, 1)), r"<f8 \[2, 1\]"),  # NumPy would repeat it 64 times
        (np.ones(64), r"<f8 \[64\]"),
        (np.full((2, 64), 1e9), "finite"),
        (np.full((2, 64), np.nan), "finite"),
    ],
    ids=["bfloat16", "narrow", "flat", "too large", "nan"],
)
def test_word_features_of_another_type_or_shape_name_the_file(tmp_path, features, reason):
    np.savez(tmp_path / "x.npz", features=features, words=["a", "b"])
    with pytest.raises(BadSample, match=rf"x\.npz: not an \.npz with features \[n, 64\] and words .*{reason}"):
        label_files.read_words(tmp_path / "x.npz")


def test_the_official_json_of_instances_is_understood(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"0": 12, "3": 721}))
    table = label_files.read_classes(tmp_path / "x.json")
    assert (table[0], table[3], table[1]) == (12, 721, -1)


def test_a_label_is_whole_with_its_side_file_and_its_end(tmp_path):
    def whole(expert):
        return label_files.is_whole(tmp_path, expert, "a.jpg")

    assert not whole("depth")
    png = label_files.write(tmp_path, "depth", "a.jpg", labels.blank("depth", 9, 9))
    assert whole("depth")
    png.write_bytes(png.read_bytes()[:-1])
    assert not whole("depth")
    png.write_bytes(b"x")
    assert not whole("depth")
    png.write_bytes(b"")
    assert not whole("depth")
    png = label_files.write(tmp_path, "obj_detection", "a.jpg", labels.blank("obj_detection", 9, 9), classes=[1])
    assert whole("obj_detection")
    png.with_suffix(".json").unlink()
    assert not whole("obj_detection")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        label_files.write(tmp_path, "depth", "a.jpg", labels.blank("depth", 9, 9))
    assert [path.name for path in tmp_path.rglob("*")] == ["depth"]


def test_a_folder_tells_whose_labels_it_has_and_how_they_were_made(tmp_path):
    for name in ("depth", "seg_coco"):
        label_files.write(tmp_path, name, "a.jpg", labels.blank(name, 9, 9))
    assert label_files.given(tmp_path) == {"depth": None, "seg_coco": None}
    (tmp_path / label_files.RECORD).write_text('{"depth": "trained weights"}')
    made_with = {"depth": "trained weights", "seg_coco": None}
    assert label_files.given(tmp_path) == label_files.given(f"{tmp_path}/{{expert}}/{{dataset}}") == made_with
    assert label_files.given(tmp_path / "nothing") == {}


@pytest.mark.parametrize("template", ["{dataset}/{expert}", "{dataset}"])
def test_each_data_set_may_have_a_folder_of_labels(tmp_path, template):
    """As tools.make_labels --output labels/vg makes them, and docs/reproduce.md has them read."""
    for dataset, name in (("vg", "depth"), ("vqav2", "depth"), ("vqav2", "edge")):
        label_files.write(tmp_path / dataset, name, "a.jpg", labels.blank(name, 9, 9))
        (tmp_path / dataset / label_files.RECORD).write_text('{"depth": "trained weights", "edge": "others"}')
    assert label_files.given(f"{tmp_path}/{template}") == {"depth": "trained weights", "edge": "others"}
    (tmp_path / "vg" / label_files.RECORD).write_text('{"depth": "others"}')
    assert label_files.given(f"{tmp_path}/{template}") == {"depth": None, "edge": "others"}


def test_labels_made_otherwise_are_refused_and_the_rows_of_others_stay(tmp_path):
    template = f"{tmp_path}/{{expert}}/vqav2"
    for made_with in ({"depth": "random weights"}, {"edge": "a student"}, {"depth": "random weights"}):
        label_files.record(template, made_with)
    remedy = f"or delete {tmp_path / 'depth' / 'vqav2'} and {tmp_path / 'vqav2' / label_files.RECORD}."
    with pytest.raises(UserError, match=f"depth made with random weights, not with trained ones.*{re.escape(remedy)}"):
        label_files.record(template, {"normal": "trained ones", "depth": "trained ones"})
    record = json.loads((tmp_path / "vqav2" / label_files.RECORD).read_text())
    assert record == {"depth": "random weights", "edge": "a student"}


@pytest.mark.parametrize("text", ["", '{"depth"', "[1]", '"depth"', "3", "\udcff"])
def test_a_damaged_note_of_how_labels_were_made_is_one_line(tmp_path, text):
    path = tmp_path / label_files.RECORD
    path.write_bytes(text.encode(errors="surrogateescape"))
    for use in (lambda: label_files.given(tmp_path), lambda: label_files.record(tmp_path, {"depth": "others"})):
        with pytest.raises(UserError, match=r"make_labels\.json: is no JSON table of experts\. Write again"):
            use()


def test_what_goes_with_all_labels_lies_beside_the_experts(tmp_path):
    template = f"{tmp_path}/{{expert}}/vqav2"
    label_files.write(template, "depth", "a.jpg", np.zeros((4, 4, 1), np.uint8))
    assert label_files.home(template) == tmp_path / "vqav2"
    assert label_files.given(template) == {"depth": None}
    (tmp_path / "vqav2").mkdir()
    (tmp_path / "vqav2" / label_files.RECORD).write_text('{"depth": "trained weights"}')
    assert label_files.given(template) == {"depth": "trained weights"}
    assert label_files.home(tmp_path) == tmp_path


def _words():
    buffer = io.BytesIO()
    np.savez(buffer, features=np.ones((2, labels.FEATURES), np.float16), words=np.array(["to", "let"]))
    return lambda: label_files.read_words("words.npz", buffer.getvalue())[1] == ["to", "let"]


def _ops():
    spec = "|".join(f"resize({size})" for size in range(20))
    return lambda: registry.parse(spec)[19] == ("resize", (19,), {})


def _captions():
    text = str([f"cat {number}" for number in range(20)])
    return lambda: captions.listed(text)[19] == "cat 19"


@pytest.mark.parametrize("make", [_words, _ops, _captions])
def test_threads_read_at_the_same_time_what_python_parses(make):
    """Fails within some seconds without the lock on Python 3.11: findings/numpy_load_threads_jax.sh."""
    before, collects, read, right = sys.getswitchinterval(), gc.get_threshold(), [], make()
    jax.block_until_ready(jnp.zeros(1))  # its callback at each garbage collection lets other threads in

    def several():
        for _ in range(400):
            read.append(right())

    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(several) for _ in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(before)
        gc.set_threshold(*collects)
    assert read == 3200 * [True]
