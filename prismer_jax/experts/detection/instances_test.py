import numpy as np
import pytest

from prismer_jax.experts.detection.instances import MOST, instance_map

FLAT = np.full((20, 30), 100, np.uint8)


def drawn(boxes, depth=FLAT):
    return instance_map(np.asarray(boxes, np.float32).reshape(-1, 4), range(10, 10 + len(boxes)), depth)


def by_masks(boxes, depth):
    """The rules of the reference on whole masks: what the code does inside boxes."""
    masks = []
    for x1, y1, x2, y2 in boxes.astype(int):
        mask = np.zeros(depth.shape, np.float32)
        mask[y1:y2, x1:x2] = 1
        if not any((mask * m).sum() > 0.95 * np.maximum(mask, m).sum() for m in masks):
            masks.append(mask)
    left = [mask.copy() for mask in masks]
    for i, a in enumerate(masks):
        for j, b in enumerate(masks[i + 1 :], i + 1):
            both = a * b
            if not both.any():
                continue
            if (both == a).all():
                left[j] -= left[i]
            elif (both == b).all():
                left[i] -= left[j]
            elif depth[a > 0].mean() != depth[b > 0].mean():
                left[j if depth[a > 0].mean() > depth[b > 0].mean() else i] -= both
    out = np.full(depth.shape, 255)
    for i, mask in enumerate(left):
        out[mask > 0] = i
    return out, len(masks)


def test_nothing_detected_is_background():
    label, classes = drawn([])
    assert (label == 255).all()
    assert classes == []


def test_fractions_of_pixels_are_cut_off():
    label, classes = drawn([(2.9, 3.1, 5.9, 4.99), (8, 8, 8.7, 8.7)])
    assert (label == 0).sum() == 3
    assert (label[3, 2:5] == 0).all()
    assert classes == [10, 11]  # the second keeps its number, though it has no pixel
    assert not (label == 1).any()


def test_the_inner_of_two_boxes_is_in_front():
    for boxes in ([(0, 0, 20, 20), (5, 5, 9, 9)], [(5, 5, 9, 9), (0, 0, 20, 20)]):
        label, _ = drawn(boxes)
        inner = int(boxes[1] == (5, 5, 9, 9))
        assert (label[5:9, 5:9] == inner).all()
        assert (label == 1 - inner).sum() == 400 - 16


@pytest.mark.parametrize(("left", "right", "front"), [(200, 50, 0), (50, 200, 1), (100, 100, 1)])
def test_the_nearer_of_two_boxes_is_in_front_and_the_later_of_equal_ones(left, right, front):
    depth = FLAT.copy()
    depth[:, :10], depth[:, 10:] = left, right
    label, classes = drawn([(2, 2, 14, 10), (8, 4, 22, 12)], depth)
    assert (label[4:10, 8:14] == front).all()
    assert classes == [10, 11]


def test_only_the_surer_of_two_like_boxes_stays():
    label, classes = drawn([(0, 0, 10, 20), (0, 0, 10, 19), (0, 0, 10, 19.9), (0, 0, 10, 15)])
    assert classes == [10, 11, 13]  # 19/20 is not more than 0.95; the third repeats the second
    assert set(np.unique(label)) == {0, 1, 2, 255}


@pytest.mark.parametrize("seed", range(5))
def test_crowds_are_drawn_as_whole_masks_would_be(seed):
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 256, (40, 50), np.uint8)
    corner = rng.uniform(0, 35, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 25, (60, 2))], 1).clip(0, [50, 40, 50, 40])
    boxes = np.concatenate([boxes, boxes[:20] + rng.uniform(0, 0.5, (20, 4))])
    label, classes = instance_map(boxes, np.arange(80), depth)
    expected, kept = by_masks(boxes, depth)
    np.testing.assert_array_equal(label, expected)
    assert len(classes) == kept


def test_of_more_than_255_instances_the_surest_stay():
    y, x = np.mgrid[:20, :20].reshape(2, -1)[:, :300]
    boxes = np.stack([x, y, x + 1, y + 1], 1).astype(np.float32)
    label, classes = instance_map(boxes, np.arange(300), FLAT)
    assert classes == list(range(MOST)) == list(range(255))
    shown = label[:20, :20].ravel()
    np.testing.assert_array_equal(shown[:255], np.arange(255))
    assert (shown[255:] == 255).all()
