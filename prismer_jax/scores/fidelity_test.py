"""Measures of label maps on maps that are made by hand, whose values can be told by eye."""

import json

import numpy as np
import pytest

from prismer_jax.labels import BACKGROUND, EXPERTS
from prismer_jax.scores import fidelity


def measured(kind, *photos):
    """Measures of photos, each (made, exact[, made_table, exact_table]); counts pass through JSON as in a journal."""
    counts = [fidelity.compare(kind, *photo) for photo in photos]
    return dict(fidelity.measures(kind, json.loads(json.dumps(counts))))


def grid(rows, channels=1):
    return np.array(rows, np.uint8).reshape(len(rows), -1, channels)


def test_depth_is_relative_and_leaves_out_what_is_far():
    made, exact = grid([[110, 40, 200]]), grid([[100, 50, 3]])
    assert measured("depth", (made, exact))["abs_rel"] == pytest.approx((0.1 + 0.2) / 2)


def normals(*vectors):
    return np.rint((np.array([vectors], np.float64) + 1) * 127.5).astype(np.uint8)


def test_normals_differ_by_an_angle_and_by_90_degrees_where_one_is_missing():
    up, right, none = (0, 1, 0), (1, 0, 0), (0, 0, 0)
    half = (np.sqrt(0.5), np.sqrt(0.5), 0)
    made, exact = normals(up, half, none, up, none), normals(up, up, up, none, none)
    assert measured("normal", (made, exact))["angle"] == pytest.approx((0 + 45 + 90 + 90) / 4, abs=0.5)
    exact[0, 1] = 0  # black says nothing
    assert measured("normal", (made, exact))["angle"] == pytest.approx((0 + 90 + 90) / 3, abs=0.5)
    assert measured("normal", (normals(right), normals((-1, 0, 0))))["angle"] == pytest.approx(
        180, abs=1
    )  # bytes have no 0


def test_edges_may_be_off_by_a_pixel_of_a_small_photo():
    exact = np.full((20, 20, 1), 255, np.uint8)
    exact[:, 10] = 0
    near, far, half = (np.full_like(exact, 255) for _ in range(3))
    near[:, 11], far[:, 13], half[:10, 10] = 0, 0, 100
    assert measured("edge", (near, exact))["f"] == pytest.approx(1)
    assert measured("edge", (far, exact))["f"] == 0
    scores = measured("edge", (half, exact))
    assert scores["precision"] == 1
    assert scores["recall"] == pytest.approx(11 / 20)  # a pixel beyond the end is near
    assert measured("edge", (exact, np.full_like(exact, 255))) == {}  # nothing to find


def test_miou_adds_up_pixels_of_all_photos_before_it_divides():
    one = grid([[0, 0, 1, 1]]), grid([[0, 0, 0, 1]])
    two = grid([[1, 1, 1, 2]]), grid([[1, 1, 1, BACKGROUND]])  # a class that is nowhere counts not
    assert measured("seg_coco", one)["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert measured("seg_coco", one, two)["miou"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_panoptic_quality_of_objects():
    b = BACKGROUND
    exact = grid([[0, 0, 0, 0, b, 1, 1, b, 2, 2]])
    made = grid([[5, 5, 5, b, b, 0, 0, b, 1, 1]])  # ids are free; the last one is called by another class
    scores = measured("obj_detection", (made, exact, {5: 3, 0: 3, 1: 4}, [3, 3, 3]))
    overlap, wrong = (3 / 4 + 1), 2 + 0.5 * 1  # two found, one missed; of class 4 one is invented, which is worth 0
    assert scores["pq"] == pytest.approx(overlap / wrong / 2)
    assert scores["rq"] == pytest.approx(2 / wrong / 2)
    assert scores["sq"] == pytest.approx(overlap / 2 / 2)
    perfect = measured("obj_detection", (exact, exact, [3, 4, 3], [3, 4, 3]))
    assert perfect == {"pq": 1, "rq": 1, "sq": 1}


def test_an_object_of_a_class_that_is_not_there_costs_as_one_that_is_missed():
    b = BACKGROUND
    one, two = grid([[0, 0, b, b, b]]), grid([[0, 0, b, 1, 1]])
    half = {"pq": 0.5, "rq": 0.5, "sq": 0.5}
    assert measured("obj_detection", (two, one, [3, 4], [3])) == half
    assert measured("obj_detection", (one, two, [3], [3, 4])) == half
    assert measured("obj_detection", (two, one, [3, 4], [3]), (one, one, [4], [4])) == pytest.approx(
        {"pq": (1 + 1 / 1.5) / 2, "rq": (1 + 1 / 1.5) / 2, "sq": 1}
    )


def test_the_parts_of_panoptic_quality_are_means_over_the_same_classes():
    """As in panopticapi: of class 3 ten things are found whole, of class 4 one by two thirds."""
    exact = grid([np.arange(11).repeat(3)])
    made = exact.copy()
    made[0, -1] = BACKGROUND
    kinds = [3] * 10 + [4]
    assert measured("obj_detection", (made, exact, kinds, kinds)) == pytest.approx(
        {"pq": (1 + 2 / 3) / 2, "rq": 1, "sq": (1 + 2 / 3) / 2}
    )


@pytest.mark.parametrize("kind", fidelity.MAIN)
def test_no_photo_has_no_measures(kind):
    assert measured(kind) == {}


def test_words_are_found_by_their_place_and_compared_by_their_vector():
    b = BACKGROUND
    exact, made = grid([[0, 0, b, 1, 1]]), grid([[b, b, b, 0, 0]])
    vectors = np.eye(64)
    assert measured("ocr_detection", (made, exact, vectors[[1]], vectors)) == pytest.approx(
        {"pq": 1 / 1.5, "rq": 1 / 1.5, "sq": 1, "cosine": 1}
    )
    assert measured("ocr_detection", (made, exact, vectors[[7]], vectors))["cosine"] == 0


@pytest.mark.parametrize("kind", fidelity.MAIN)
def test_the_main_measure_of_every_kind_is_among_them(kind):
    rng, row = np.random.default_rng(0), EXPERTS[kind]
    label = rng.integers(0, 3 if row.storage == "ids" else 256, (12, 12, row.channels)).astype(np.uint8)
    table = {"instances": np.arange(256) % 9, "words": rng.standard_normal((256, 64))}.get(row.embed)
    assert fidelity.MAIN[kind] in measured(kind, (label, label, table, table))
    assert tuple(measured(kind, (label, label, table, table))) == fidelity.MEASURES[kind]


def test_maps_of_other_sizes_are_not_compared():
    with pytest.raises(ValueError, match="depth: maps of"):
        fidelity.compare("depth", np.zeros((2, 2, 1), np.uint8), np.zeros((3, 2, 1), np.uint8))
