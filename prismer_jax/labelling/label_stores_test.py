import dataclasses
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_files, label_png, labels
from prismer_jax.experts.expert import Label
from prismer_jax.labelling.label_stores import LabelFiles, LabelShards
from prismer_jax.labelling.ledger import Shard
from prismer_jax.labelling.pipeline import Photo

SHARD = Shard(1, 4, 8)
PHOTOS = [Photo(f"{name}.jpg", "", name) for name in ("a", "sub/b", "c")]
MAP = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
LABELS = {
    "depth": Label(MAP),
    "obj_detection": Label(MAP, classes=[7, 3]),
    "ocr_detection": Label(MAP, features=np.ones((2, 64)), words=["stop", "go"]),
}


def never():
    pass


@pytest.fixture(params=[LabelFiles, LabelShards])
def store(request, tmp_path):
    return request.param(tmp_path / "labels")


def fill(store, expert, photos, label=None, check=never):
    writer = store.open(expert, SHARD)
    for photo in photos:
        writer.write(photo, label)
    try:
        writer.publish(check)
    finally:
        writer.close()


@pytest.mark.parametrize("expert", LABELS)
def test_what_is_written_is_read(store, expert):
    fill(store, expert, PHOTOS[:2], LABELS[expert])
    writer = store.open(expert, SHARD)
    assert [writer.has(photo) for photo in PHOTOS] == [True, True, False]
    assert store.read(expert, SHARD, PHOTOS[2]) is None
    for photo in PHOTOS[:2]:
        part = label_files.parse(expert, store.read(expert, SHARD, photo), photo.name)
        np.testing.assert_array_equal(label_png.decode(expert, part.pop(f"labels/{expert}")), MAP)
        if expert == "obj_detection":
            assert part.pop(labels.CLASSES_KEY)[:3].tolist() == [7, 3, -1]
        elif expert == "ocr_detection":
            assert part.pop(labels.WORDS_KEY)[:3, 0].tolist() == [1, 1, 0]
            assert part.pop("words") == ["stop", "go"]
        assert not part


def test_an_empty_label_is_there_and_empty(store):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "jpeg")
    photo = dataclasses.replace(PHOTOS[0], source=buffer.getvalue())
    for expert in ("depth", "obj_detection", "ocr_detection"):
        fill(store, expert, [photo])
        assert store.open(expert, SHARD).has(photo)
        files = store.read(expert, SHARD, photo)
        if isinstance(store, LabelShards):  # as in a record, which comes of it
            assert files == {".png": b""}
            continue
        part = label_files.parse(expert, files, photo.name)
        map = label_png.decode(expert, part[f"labels/{expert}"])
        np.testing.assert_array_equal(map, labels.blank(expert, 6, 8))
        assert len(part) == {"depth": 1, "obj_detection": 2, "ocr_detection": 3}[expert]  # with the side files


def test_a_photo_that_nobody_can_read_gets_no_label_file(tmp_path):
    store = LabelFiles(tmp_path / "labels")
    fill(store, "depth", [dataclasses.replace(PHOTOS[0], source=b"no photo")])
    assert not (tmp_path / "labels").exists()


def test_labels_of_a_later_start_join_those_of_an_earlier_one(store):
    fill(store, "depth", PHOTOS[:1], LABELS["depth"])
    store.read("depth", SHARD, PHOTOS[0])  # opened before it changes
    fill(store, "depth", PHOTOS[1:], LABELS["depth"])
    fill(store, "depth", [])  # nothing new
    assert all(store.read("depth", SHARD, photo) for photo in PHOTOS)


def contents(archive):
    """Returns what a zip file holds, without the times at which it was written."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_a_shard_of_labels_is_whole_or_not_there(tmp_path):
    store = LabelShards(tmp_path)
    writer = store.open("depth", SHARD)
    writer.write(PHOTOS[0], LABELS["depth"])
    assert not store.open("depth", SHARD).has(PHOTOS[0])  # not published
    writer.close()
    assert not list(tmp_path.iterdir())

    def lost():
        raise RuntimeError("another process took over")

    with pytest.raises(RuntimeError):
        fill(store, "depth", PHOTOS, LABELS["depth"], lost)
    assert not list(tmp_path.iterdir())

    fill(store, "depth", PHOTOS, LABELS["depth"])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert not store.open("depth", SHARD).has(PHOTOS[0])
        assert store.read("depth", SHARD, PHOTOS[0]) is None
    fill(store, "depth", PHOTOS, LABELS["depth"])  # replaces what was cut off
    assert contents(path.read_bytes()) == contents(whole)
    (tmp_path / ".depth.zip.1234.tmp").touch()
    store.sweep()
    store.remove("depth", SHARD)
    assert not list(tmp_path.iterdir())
