import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts.detection import roi_align

SIZES = ((24, 40), (12, 20), (6, 10))  # p3, p4, p5 of an image of 192 x 320 pixels


def sampled(feature, box, scale):
    """RoIAlign of one box sample by sample: [7, 7, c]."""
    height, width = feature.shape[:2]
    x1, y1, x2, y2 = box * scale - 0.5
    rows, columns = int(np.ceil((y2 - y1) / 7)), int(np.ceil((x2 - x1) / 7))
    out = np.zeros((7, 7, feature.shape[2]))
    for i, j in np.ndindex(7, 7):
        for a, b in np.ndindex(rows, columns):
            y = y1 + (i + (a + 0.5) / rows) * (y2 - y1) / 7
            x = x1 + (j + (b + 0.5) / columns) * (x2 - x1) / 7
            if -1 <= y <= height and -1 <= x <= width:
                out[i, j] += bilinear(feature, min(max(y, 0), height - 1), min(max(x, 0), width - 1))
    return out / max(rows * columns, 1)


def bilinear(feature, y, x):
    top, left = int(y), int(x)
    bottom, right = min(top + 1, feature.shape[0] - 1), min(left + 1, feature.shape[1] - 1)
    v, u = y - top, x - left
    upper = feature[top, left] * (1 - u) + feature[top, right] * u
    lower = feature[bottom, left] * (1 - u) + feature[bottom, right] * u
    return upper * (1 - v) + lower * v


@pytest.fixture(scope="module")
def levels():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, *size, 3)).astype(np.float32) for size in SIZES]


def test_every_box_is_the_mean_of_its_samples_on_its_level(levels):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, (320, 192), (2, 20, 2))
    rois = np.concatenate([corner, np.minimum(corner + rng.uniform(0, 150, (2, 20, 2)), (320, 192))], -1)
    rois[0, 0] = (0, 0, 320, 192)  # all of the image
    rois[0, 1] = (10, 10, 10, 50)  # nothing
    rois[0, 2] = (0, 100, 320, 104)  # long and thin: many samples one way
    rois[0, 3] = (319, 191, 320, 192)
    rois = rois.astype(np.float32)
    stacked = roi_align.stack([jnp.asarray(level) for level in levels])
    pooled = jax.jit(roi_align.roi_align, static_argnums=1)(stacked, SIZES, rois)
    level = np.asarray(roi_align.level_of(jnp.asarray(rois), 3))
    assert set(level.ravel()) == {0, 1}
    for b, i in np.ndindex(2, 20):
        expected = sampled(levels[level[b, i]][b], rois[b, i], 1 / 2 ** (3 + level[b, i]))
        np.testing.assert_allclose(pooled[b, i], expected, atol=2e-5)
    assert not np.asarray(pooled)[0, 1].any()
    assert np.asarray(pooled)[0, 2].any()


def test_levels_change_where_a_square_has_half_and_twice_the_canonical_side():
    sides = np.array([1, 111.9, 112, 223.9, 224, 447.9, 448, 5000], np.float32)
    square = jnp.asarray(np.stack([0 * sides, 0 * sides, sides, sides], -1))
    assert roi_align.level_of(square, 3).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert roi_align.level_of(jnp.zeros((1, 4)), 3).tolist() == [0]


def test_a_bin_weighs_one_inside_the_map_and_less_where_it_hangs_out():
    weights = roi_align.matrix(jnp.asarray([0.0, 3.3, -7.0]), jnp.asarray([20.0, 9.1, 7.0]), 20)
    np.testing.assert_allclose(weights[:2].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights[2].sum(-1), [0, 0, 0, 1, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3, 6, 12])
def test_an_interval_of_the_whole_map_takes_every_cell_once(samples):
    """In jaxlib 0.10.2 and 0.12.0.1, 21 / 7 is above 3 (findings/jax_division_by_number.sh): a sample too many."""
    cells = 7 * samples
    weights = jax.jit(roi_align.matrix, static_argnums=2)(jnp.zeros(2), jnp.full(2, float(cells)), cells)
    expected = np.repeat(np.eye(7), samples, axis=1) / samples
    np.testing.assert_allclose(weights, [expected, expected], atol=1e-5)
