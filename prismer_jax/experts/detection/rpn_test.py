import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.experts.detection import rpn


def test_anchors_stand_on_corners_by_size_then_by_ratio():
    anchors = rpn.anchors(4, 3, 5)
    assert anchors.shape == (3, 5, 9, 4)
    size = anchors[..., 2:] - anchors[..., :2]
    np.testing.assert_allclose((anchors[2, 1, :, :2] + anchors[2, 1, :, 2:]) / 2, [[16, 32]] * 9, atol=1e-5)
    np.testing.assert_allclose(size[0, 0, ::3].prod(-1) ** 0.5, 64 * 2 ** np.array([0, 1 / 3, 2 / 3]), rtol=1e-6)
    np.testing.assert_allclose(size[0, 0, :3, 1] / size[0, 0, :3, 0], [0.5, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(anchors[0, 0, 1], [-32, -32, 32, 32], rtol=1e-6)


def propose(peaks, size=(100, 140), before=20, after=30):
    """Proposals of two levels, 16 x 24 and 8 x 12 cells, whose logits are -9 but for {(level, y, x, anchor): logit}."""
    shapes = [(16, 24), (8, 12)]
    logits = [np.full((*shape, rpn.ANCHORS), -9, np.float32) for shape in shapes]
    for (level, y, x, anchor), value in peaks.items():
        logits[level][y, x, anchor] = value
    deltas = [jnp.zeros((*shape, 4 * rpn.ANCHORS)) for shape in shapes]
    run = jax.jit(rpn.propose, static_argnums=(3, 4))
    found, scores = run([jnp.asarray(x) for x in logits], deltas, jnp.asarray(size), before, after)
    return np.asarray(found), np.asarray(scores)


def test_the_surest_proposals_come_first_and_are_cut_at_the_image():
    found, scores = propose({(0, 4, 4, 1): 5.0, (1, 3, 3, 1): 7.0, (0, 10, 15, 1): 3.0})
    np.testing.assert_array_equal(scores[:3], [7, 5, 3])
    np.testing.assert_allclose(found[:3], [[16, 16, 80, 80], [16, 16, 48, 48], [104, 64, 136, 96]])
    found, _ = propose({(0, 12, 17, 1): 5.0})
    np.testing.assert_allclose(found[0], [120, 80, 140, 100])


def test_worse_proposals_of_the_same_level_are_dropped_and_those_outside_the_image():
    cell, other = (0, 4, 4, 1), (0, 4, 4, 4)  # concentric, 32 and 40.3 px: overlap 0.63
    assert propose({cell: 5.0, other: 4.0})[1][:2].tolist() == [5, 4]
    near = (0, 4, 5, 7)  # 8 px to the right of `wide`, 50.8 px: overlap 0.73
    wide = (0, 4, 4, 7)
    assert propose({wide: 5.0, near: 4.0})[1][1] == -9
    assert propose({(0, 15, 4, 1): 5.0})[1][0] == -9  # from 104 px down, the image ends at 100


def test_where_few_are_left_the_rest_are_zeros():
    found, scores = propose({}, before=2, after=30)
    assert np.isneginf(scores[4:]).all()
    assert not found[4:].any()
