import threading
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

from prismer_jax import sharding
from prismer_jax.errors import BadSample
from prismer_jax.experts.testing import ToyDepth, ToyDetection
from prismer_jax.labelling import pipeline
from prismer_jax.labelling.pipeline import BORDER, Photo

SIZES = [(30, 40), (8, 6), (40, 30), (60, 80), (9, 9), (16, 12), (300, 400)]


@pytest.fixture
def photos(tmp_path):
    found = []
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        found.append(Photo(f"{i}.png", str(tmp_path / f"{i}.png")))
    return found


def label(expert, photos, mesh, batch_size=4, write=None, needed=lambda photo: {}, items=None, busy=None):
    """Returns ({name: label}, {name: problem}) and the sizes of the batches that were compiled."""
    labels, seen, apply = {}, [], expert.apply

    def traced(variables, batch):
        seen.append(batch["image"].shape)
        return apply(variables, batch)

    expert.apply = traced
    write = write or (lambda index, photo, label: labels.update({photo.name: label}))
    results = pipeline.run(
        expert,
        expert.random_variables,
        range(len(photos)) if items is None else items,
        photos.__getitem__,
        write,
        lambda index, photo, size: needed(photo),
        mesh=mesh,
        batch_size=batch_size,
        busy=busy,
    )
    return labels, {result.photo.name: str(result.problem) for result in results if result.problem}, seen


@pytest.fixture(scope="module")
def one():
    return sharding.make_mesh(devices=jax.devices()[:1])


def test_labels_are_those_of_predict_whatever_the_batch(photos, one):
    expert = ToyDepth()
    pixels = [np.asarray(Image.open(photo.source)) for photo in photos]
    expected = expert.predict(pixels, expert.random_variables(), mesh=one)
    for batch_size in (1, 3, 7):
        labels, problems, _ = label(ToyDepth(), photos, one, batch_size)
        assert not problems
        for photo, theirs in zip(photos, expected, strict=True):
            np.testing.assert_array_equal(labels[photo.name].map, theirs.map)


def test_every_shape_is_compiled_once_for_no_more_than_its_photos(photos, one):
    depth = {photo.name: np.full((*size, 1), 200, np.uint8) for photo, size in zip(photos, SIZES, strict=True)}
    needed = lambda photo: {"depth": type("L", (), {"map": depth[photo.name]})()}  # noqa: E731
    labels, problems, traced = label(ToyDetection(), photos, one, batch_size=2, needed=needed)
    assert len(labels) == len(photos)
    assert not problems
    # Three photos of 3:4 in batches of two, one of 1:1, three of 4:3.
    assert sorted(traced) == [(1, 16, 16, 3), (2, 12, 16, 3), (2, 16, 12, 3)]


def test_a_mesh_shares_the_batches(photos):
    mesh = sharding.make_mesh()
    labels, _, traced = label(ToyDepth(), photos, mesh, batch_size=4)
    assert len(labels) == len(photos)
    assert traced == [(8, 6, 8, 3)]


def test_a_photo_that_cannot_be_labelled_does_not_stop_the_others(photos, tmp_path, one):
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    Image.fromarray(np.zeros((20000, 10, 3), np.uint8)).save(tmp_path / "narrow.png")
    narrow = Photo("narrow.png", str(tmp_path / "narrow.png"))

    def needed(photo):
        if photo.name == "4.png":
            raise BadSample("has no label of depth.")
        return {"depth": type("L", (), {"map": np.zeros((9, 9, 1), np.uint8)})()}

    labels, problems, _ = label(ToyDetection(), [*photos, narrow], one, needed=needed)
    assert sorted(labels) == ["0.png", "1.png", "3.png", "5.png", "6.png"]
    assert "2.png: not a readable image" in problems["2.png"]
    assert problems["4.png"] == "4.png: has no label of depth."
    assert problems["narrow.png"] == "narrow.png: 20000x10 pixels are too narrow to detect anything."


def test_an_error_of_writing_stops_the_run(photos, one):
    def write(index, photo, label):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        label(ToyDepth(), photos, one, write=write)


def test_reading_goes_on_ahead_and_writing_behind(photos, one, monkeypatch):
    """Reading and writing of 0.05 s a photo in 4 threads each take no longer than one of them, roughly."""
    threads, read = set(), pipeline.read_image

    def slow(*args):
        time.sleep(0.05)
        threads.add(threading.get_ident())
        return read(*args)

    monkeypatch.setattr(pipeline, "read_image", slow)
    many = [Photo(f"{i}-{p.name}", p.source) for i in range(8) for p in photos]
    written = []

    def write(index, photo, label):
        time.sleep(0.05)
        written.append(photo.name)

    started = time.monotonic()
    label(ToyDepth(), many, one, batch_size=4, write=write)
    assert len(written) == len(many)
    assert len(threads) == pipeline.THREADS
    assert time.monotonic() - started < 0.1 * len(many) * 0.6  # one after the other: all of it


def test_batches_are_filled_up_across_a_border_and_wait_for_no_second_one(photos, one):
    """Of one shape each: 3 photos, a border, 3 photos, a border ... in batches of 4."""
    order, went = [], []
    items = [item for shard in range(4) for item in (*range(3 * shard, 3 * shard + 3), BORDER)]

    def read(index):
        order.append(index)
        return Photo(f"{index}", photos[0].source)

    expert = ToyDepth()
    run, expert.run = expert.run, lambda *args: went.append((len(args[1]), args[3])) or run(*args)
    arguments = (lambda index, photo, label: None, lambda index, photo, size: {})
    results = pipeline.run(expert, expert.random_variables, items, read, *arguments, mesh=one, batch_size=4)
    assert sorted(result.item for result in results) == list(range(12))
    assert went == [(4, 4)] * 3


def test_a_rare_shape_goes_at_the_second_border_at_a_size_that_is_compiled_at_most_twice(photos, one):
    """Photos 3 and 4 have shapes of their own; each goes when two borders have passed, though no batch is full."""
    items = [3, BORDER, 4, BORDER, 0, BORDER, 3, 3, 3, BORDER, BORDER, 3, 3]
    works = (
        item if item is BORDER else pipeline.Work(item, photos[item], {"image": np.zeros(SIZES[item])}, SIZES[item])
        for item in items
    )
    batches = [([work.item for work in batch], size) for batch, size in pipeline._batches(works, 4)]
    assert batches == [([3], 1), ([4], 1), ([0], 1), ([3, 3, 3], 4), ([3, 3], 4)]


def test_what_has_its_label_is_not_read_and_weights_are_not_loaded_for_nothing(one):
    expert = ToyDepth()

    def load():
        raise AssertionError("nothing to do")

    arguments = (lambda index, photo, label: None, lambda index, photo, size: {})
    results = list(pipeline.run(expert, load, range(5), lambda index: None, *arguments, mesh=one, batch_size=4))
    assert [(result.item, result.photo, result.problem) for result in results] == [(i, None, None) for i in range(5)]


def test_the_device_is_busy_while_it_computes_and_no_longer(monkeypatch):
    batches = [(0, 2), (1, 4), (8, 10)]  # begun and ended; the second waits for the first, then nothing is there to do
    ends = iter(end for _, end in batches)
    monkeypatch.setattr(pipeline, "time", types.SimpleNamespace(monotonic=lambda: next(ends)))
    busy = pipeline.Busy()
    for started, _ in batches:
        busy.watch((), started)
    assert busy.share() == 6 / 10


def test_labelling_measures_how_busy_the_device_is(photos, one):
    label(ToyDepth(), photos, one, busy=(busy := pipeline.Busy()))
    assert 0 < busy.share() <= 1
