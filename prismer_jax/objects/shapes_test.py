import numpy as np
import pytest

from prismer_jax.errors import BadSample
from prismer_jax.objects import shapes


def test_run_lengths_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 5), (120, 200)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(size) < share
            theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            ours = shapes.run_lengths(mask)
            assert ours == {"size": list(size), "counts": theirs["counts"].decode()}
            np.testing.assert_array_equal(shapes.mask_of(theirs, size), mask)


def test_uncompressed_run_lengths_go_down_the_columns():
    mask = shapes.mask_of({"size": [2, 3], "counts": [1, 3, 2]}, (2, 3))
    np.testing.assert_array_equal(mask, [[False, True, False], [True, True, False]])


def test_polygons_cover_the_pixels_of_which_they_have_half():
    square, triangle = [1, 1, 4, 1, 4, 3, 1, 3], [5, 0, 9, 0, 9, 4]
    mask = shapes.mask_of([square, triangle], (6, 10))
    assert mask.sum() == 6 + mask[:, 5:].sum()
    assert mask[1:3, 1:4].all()
    assert 6 <= mask[:, 5:].sum() <= 10  # of 8
    assert not shapes.mask_of([[20, 20, 30, 20, 30, 30]], (6, 10)).any()


def test_polygons_are_the_pixels_that_pycocotools_makes_of_them():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(3, 90, 2).tolist()
        corners = int(rng.integers(3, 30))
        angles, radii = np.sort(rng.random(corners)) * 2 * np.pi, rng.uniform(0.1, 0.7, corners)  # some reach outside
        if rng.random() < 0.2:
            angles = rng.permutation(angles)  # sides that cross
        points = np.stack([width * (0.5 + radii * np.cos(angles)), height * (0.5 + radii * np.sin(angles))], 1)
        polygon = points.round(int(rng.integers(3))).ravel().tolist()
        theirs = coco.decode(coco.frPyObjects([polygon], height, width))[..., 0] > 0
        np.testing.assert_array_equal(shapes.mask_of([polygon], (height, width)), theirs)


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ({"size": [2, 3], "counts": [1, 3]}, "runs of 4 pixels for 2x3"),
        ({"size": [2, 3]}, "counts"),
        ({"size": [2, 3], "counts": [[6]]}, "run lengths cannot be read"),
        ({"size": [2, 3], "counts": "\x01"}, "no compressed run length"),
        ({"size": [2, 3], "counts": "PYYYYYYYYYYYYYYYYYY"}, "run length"),
        ({"size": [3, 2], "counts": [6]}, "3x2 pixels, its photo 2x3"),
        ([[1, 1, 2, 2]], "three points"),
        ([["a", 1, 2, 2, 3, 3]], "three points"),
        ([[0, 0, 2e6, 0, 1, 1]], "three points x, y in pixels"),
        ([[0, 0, 1, 0, 1, float("nan")]], "three points"),
        ("cat", "neither"),
        ([], "neither"),
    ],
)
def test_what_is_no_mask_is_named(segmentation, problem):
    with pytest.raises(BadSample, match=problem):
        shapes.mask_of(segmentation, (2, 3))


def test_crops_and_pastes_meet():
    mask = np.zeros((50, 80), bool)
    mask[10:30, 20:70] = True
    box = shapes.box_of(mask)
    assert box == (0.2, 0.25, 0.6, 0.875)
    inside = shapes.crop(mask, box)
    assert inside.shape == (64, 64)
    assert (inside == 1).all()
    np.testing.assert_array_equal(shapes.pasted(2 * inside - 1, box, mask.shape), mask)
    assert shapes.box_of(np.zeros((4, 4), bool)) is None
    assert shapes.pasted(inside, (0.1, 0.1, 0.101, 0.9), mask.shape) is None
    with pytest.raises(BadSample, match="holds no pixel"):
        shapes.crop(mask, (0.1, 0.1, 0.101, 0.9))
