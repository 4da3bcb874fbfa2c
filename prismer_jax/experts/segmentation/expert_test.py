import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import sharding
from prismer_jax.experts import EXPERTS
from prismer_jax.experts.segmentation import SegAde, SegCoco, mask2former
from prismer_jax.experts.segmentation import expert as segmentation
from prismer_jax.experts.segmentation.panoptic import Segment

TINY = {
    "backbone": {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 4},
    "pixels": {"width": 32, "mask_width": 8, "depth": 1, "heads": 2, "points": 1, "hidden": 8},
    "decoder": {"width": 32, "queries": 5, "depth": 1, "heads": 2, "hidden": 8},
}


def photo(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def coco():
    expert = SegCoco(**TINY)
    return expert, expert.random_variables()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def test_labels_have_the_photos_size_and_do_not_depend_on_others_in_the_batch(coco, mesh):
    expert, variables = coco
    first, second = photo(45, 900), photo(80, 1000)
    batches = [[first, second, photo(1, 2000)], [photo(30, 800), photo(66, 960), first]]
    labels = [expert.predict(photos, variables, mesh=mesh) for photos in batches]
    for photos, found in zip(batches, labels, strict=True):
        assert sorted(expert.shape(*p.shape[:2]) for p in photos) == [(32, 480), (32, 480), (64, 480)]
        for one, label in zip(photos, found, strict=True):
            assert label.map.shape == (*one.shape[:2], 1)
            assert label.map.dtype == np.uint8
            assert label.map.max() < 133
    np.testing.assert_array_equal(labels[0][0].map, labels[1][2].map)
    assert len({int(c) for label in labels[0] for c in np.unique(label.map)}) > 1  # else equality says nothing


def test_photos_without_a_whole_pixel_of_a_level_are_padded_to_one(coco):
    expert, _ = coco
    for size in ((1, 1000), (1000, 1), (1, 1)):
        prepared = expert.prepare(photo(*size))
        assert min(prepared["image"].shape[:2]) == (480 if size == (1, 1) else 32)
        assert min(prepared["size"]) == (479 if size == (1, 1) else 1)
        assert prepared["image"].shape[:2] == expert.shape(*size)


def test_the_network_gets_blue_green_red(coco, monkeypatch):
    expert, _ = coco
    monkeypatch.setattr(type(expert.module), "apply", lambda self, variables, image, size: image)
    batch = {"image": jnp.asarray([[[[1, 2, 3]]]], jnp.uint8), "size": jnp.asarray([[1, 1]])}
    assert expert.logits({}, batch).tolist() == [[[[3, 2, 1]]]]


def test_strips_are_a_bilinear_resize_of_what_is_inside():
    x = np.random.default_rng(0).random((6, 8, 3), np.float32)
    for inside, size in (((6, 8), (9, 5)), ((4, 5), (7, 11)), ((5, 5), (5, 5)), ((1, 8), (3, 3))):
        made = np.concatenate(list(segmentation.strips(x, inside, size)))
        cropped = jnp.asarray(x[: inside[0], : inside[1]])
        expected = jax.image.resize(cropped, (*size, 3), "linear", antialias=False)
        np.testing.assert_allclose(made, expected, atol=1e-6)


def test_a_large_map_is_resized_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(segmentation, "STRIP", 100)
    x = np.random.default_rng(0).random((4, 4, 7), np.float32)
    strips = list(segmentation.strips(x, (4, 3), (9, 5)))
    assert [len(strip) for strip in strips] == [2, 2, 2, 2, 1]
    monkeypatch.setattr(segmentation, "STRIP", 10**6)
    np.testing.assert_array_equal(np.concatenate(strips), next(segmentation.strips(x, (4, 3), (9, 5))))


def test_panoptic_map_has_the_photos_size_and_is_made_of_red_green_blue():
    expert, one = SegCoco(**TINY), np.full((66, 960, 3), (10, 20, 30), np.uint8)
    logits = np.zeros((1, 4, 134), np.float32)
    for query, category in enumerate((17, 100, 17, 133)):  # a thing, stuff, another thing, nothing
        logits[0, query, category] = 20
    masks = np.full((1, 16, 120, 4), -9, np.float32)
    masks[0, :, :60, 0] = masks[0, :, 60:90, 1] = masks[0, :, 90:, 2] = masks[0, ..., 3] = 9

    def network(variables, image, size):
        assert image[0, 0, 0].tolist() == [10, 20, 30]
        assert (image.shape, size.tolist()) == ((1, 64, 480, 3), [[33, 480]])
        return logits, masks

    expert.__dict__["_network"] = network
    made = expert.panoptic(one, {})
    assert made.segments == (Segment(1, 17, True), Segment(2, 100, False), Segment(3, 17, True))
    expected = np.repeat([1, 2, 3], (480, 240, 240))
    np.testing.assert_array_equal(made.map, np.broadcast_to(expected, (66, 960)))
    logits[:] = 0  # no query is sure
    assert not expert.panoptic(one, {}).segments


def test_things_are_those_of_the_data_sets():
    assert len(SegCoco.things) == 80
    assert len(SegAde.things) == 100
    assert not {0, 1, 2} & SegAde.things  # wall, building, sky
    assert {7, 12, 20} <= SegAde.things  # bed, person, car


@pytest.mark.slow
def test_bfloat16_keeps_most_labels(coco, mesh):
    expert, variables = coco
    one = photo(45, 900)
    full = expert.predict([one], variables, mesh=mesh)[0].map
    half = SegCoco("bfloat16", **TINY).predict([one], variables, mesh=mesh)[0].map
    assert (full == half).mean() > 0.8


def test_both_are_in_the_table_of_experts():
    assert EXPERTS["seg_coco"] is SegCoco
    assert EXPERTS["seg_ade"] is SegAde
    assert mask2former.TABLE is SegAde.table
    assert SegCoco().module.classes == 133
    assert SegAde().module.classes == 150
