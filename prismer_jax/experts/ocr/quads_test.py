import cv2
import numpy as np
import pytest

from prismer_jax.experts.ocr import quads

UNIT = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


def moved(x, y):
    return UNIT + np.array([x, y])


def turned(rng, n):
    """Random rotated rectangles in a square of 40 pixels."""
    return quads.rectangles(rng.uniform(0, 40, (n, 2)), rng.uniform(0.5, 12, (n, 4)), rng.uniform(-4, 4, n))


def test_a_rectangle_turns_clockwise_about_its_point():
    sides = np.array([[1.0, 2.0, 3.0, 4.0]] * 2)
    upright, turned = quads.rectangles(np.array([[10.0, 20.0]] * 2), sides, np.array([0, np.pi / 2]))
    np.testing.assert_array_equal(upright, [[7, 19], [14, 19], [14, 22], [7, 22]])
    np.testing.assert_allclose(turned, [[11, 17], [11, 24], [8, 24], [8, 17]], atol=1e-5)


@pytest.mark.parametrize(
    ("other", "overlap"),
    [
        (UNIT, 1),
        (moved(0.5, 0), 0.5 / 1.5),
        (UNIT / 2 + 0.25, 0.25),  # inside
        (UNIT * 2 - 0.5, 0.25),  # around
        (moved(1, 0), 0),  # touches
        (moved(0, 5), 0),
        (UNIT * [1, 0], 0),  # without area
        (UNIT * 0, 0),
        (UNIT[::-1], 1),  # the other way round
        # Turned by an eighth about the centre: a regular octagon is left.
        ([[0.5, 0.5 - 0.5**0.5], [0.5 + 0.5**0.5, 0.5], [0.5, 0.5 + 0.5**0.5], [0.5 - 0.5**0.5, 0.5]], 2**-0.5),
    ],
)
def test_overlap_is_intersection_over_union(other, overlap):
    found = quads.overlaps(UNIT[None].astype(float), np.array([other], float))
    np.testing.assert_allclose(found, [overlap], atol=1e-12)


def test_a_box_without_area_overlaps_with_nothing():
    assert quads.overlaps(UNIT[None] * [1, 0], UNIT[None] * 1.0).tolist() == [0]


def test_boxes_that_only_touch_do_not_overlap_by_rounding():
    slanted = np.array([[[81, 0], [153, 66], [133, 80], [61, 0]]], np.float32)
    beside = np.array([[[95, 0], [111, 0], [111, 7], [95, 7]]], np.float32)
    assert quads.overlaps(beside, slanted).tolist() == [0]
    assert quads.overlaps(beside - np.float32([10, 0]), slanted) > 0


def test_overlaps_agree_with_opencvs():
    rng = np.random.default_rng(0)
    a, b = turned(rng, 300), turned(rng, 300)
    inside = np.array([cv2.intersectConvexConvex(*pair)[0] for pair in zip(a, b, strict=True)])
    expected = inside / (quads.areas(a) + quads.areas(b) - inside)
    assert (expected > 0.1).sum() > 30
    np.testing.assert_allclose(quads.overlaps(a, b), expected, atol=1e-4)  # OpenCV computes in float32
    np.testing.assert_allclose(quads.overlaps(b, a), quads.overlaps(a, b), atol=1e-12)


def test_guesses_of_one_box_become_their_mean_and_lone_ones_go():
    boxes = np.array([UNIT * 10, UNIT * 10 + (2, 0), UNIT * 10 + (8, 0), UNIT * 10 + (40, 0)], np.float32)
    scores, features = np.array([0.6, 0.9, 0.7, 0.8], np.float32), np.eye(4, dtype=np.float32)
    corners, kept, means = quads.merge(boxes, scores, 0.15, features)
    # The surest is the second. It overlaps with the first by 2/3 and with the third by 1/4; the fourth is alone.
    np.testing.assert_allclose(corners, [(UNIT * 10) + [2 * 0.9 / 1.5, 0]], rtol=1e-6)
    np.testing.assert_array_equal(kept, [np.float32(0.9)])
    np.testing.assert_allclose(means, [[0.4, 0.6, 0, 0]], rtol=1e-6)


def test_what_a_lone_box_suppressed_does_not_come_back():
    boxes = np.array([UNIT * 10, UNIT * 10 + (7, 0), UNIT * 10 + (7, 0)], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert len(quads.merge(boxes, scores, 0.15, np.empty((3, 0), np.float32))[0]) == 0
    assert len(quads.merge(boxes, scores, 0.2, np.empty((3, 0), np.float32))[0]) == 1


def test_of_equal_scores_the_first_decides():
    boxes = np.array([UNIT * 10, UNIT * 10 + (2, 0), UNIT * 10 + (5, 0)], np.float32)
    scores, features = np.full(3, 0.75, np.float32), np.eye(3, dtype=np.float32)
    _, _, means = quads.merge(boxes, scores, 0.15, features)
    np.testing.assert_allclose(means, [[0.5, 0.5, 0]])  # from the second's view all three would be one
    _, _, means = quads.merge(boxes[[1, 0, 2]], scores, 0.15, features)
    np.testing.assert_allclose(means, [[1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


def test_nothing_merges_to_nothing():
    for part in quads.merge(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 0.15, np.empty((0, 3))):
        assert len(part) == 0


def test_a_filled_box_is_opencvs_but_for_pixels_just_beside_it():
    rng = np.random.default_rng(1)
    for box in turned(rng, 300).clip(0, 47).round().astype(int):
        ours, opencvs = np.zeros((2, 48, 48), np.uint8)
        quads.fill(ours, box, 7)
        cv2.fillPoly(opencvs, [box.astype(np.int32)], 7)
        assert (ours >= opencvs).all()
        beside = cv2.dilate(opencvs, np.ones((1, 3), np.uint8))
        assert (ours <= beside).all()
        assert (ours != opencvs).sum() <= 12


def test_a_pixel_half_way_is_filled_as_the_reference_fills_it():
    image = np.full((16, 96), 255, np.uint8)
    quads.fill(image, np.array([[56, 0], [93, 0], [90, 14], [53, 8]]), 3)
    assert image[7, 92] == 3  # the right side passes through 91.5 there
    assert image[7, 93] == 255
