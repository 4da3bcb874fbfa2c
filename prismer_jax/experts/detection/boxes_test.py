import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts.detection import boxes


def random_boxes(rng, *shape):
    corner = rng.uniform(0, 60, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 30, (*shape, 2))], -1).astype(np.float32)


def overlap(a, b):
    w, h = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in range(2))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - w * h
    return w * h / union if union else 0.0


def greedy(scores, found, threshold):
    """Textbook suppression of one group: indices that survive, best first."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if np.isfinite(scores[i]) and all(overlap(found[i], found[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def test_decoding_moves_by_the_size_and_grows_by_an_exponential():
    box = jnp.asarray([[10.0, 20.0, 30.0, 60.0]])
    same = boxes.decode(jnp.zeros((1, 4)), box)
    np.testing.assert_allclose(same, box)
    moved = boxes.decode(jnp.asarray([[1.0, -5.0, 5 * np.log(2), 0.0]]), box, (10, 10, 5, 5))
    np.testing.assert_allclose(moved, [[2, 0, 42, 40]], rtol=1e-6)  # 2 px right, 20 px up, twice as wide
    huge = boxes.decode(jnp.asarray([[0.0, 0.0, 99.0, 0.0]]), box)
    np.testing.assert_allclose(huge[0, 2] - huge[0, 0], 20 * 1000 / 16, rtol=1e-5)


def test_boxes_are_cut_at_their_own_images_edges():
    box = jnp.asarray([[[-5.0, -5.0, 50.0, 50.0], [25.0, 1.0, 30.0, 2.0]]] * 2)
    cut = boxes.clip(box, jnp.asarray([[40, 20], [60, 60]]))
    np.testing.assert_array_equal(cut[0], [[0, 0, 20, 40], [20, 1, 20, 2]])
    np.testing.assert_array_equal(cut[1], [[0, 0, 50, 50], [25, 1, 30, 2]])
    assert boxes.nonempty(cut[0]).tolist() == [True, False]
    assert not boxes.nonempty(jnp.full((1, 4), jnp.nan))[0]


def test_overlap_is_intersection_over_union():
    found = boxes.overlaps(
        jnp.asarray([0.0, 0.0, 10.0, 10.0]),
        jnp.asarray([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [3.0, 3.0, 3.0, 3.0]]),
    )
    np.testing.assert_allclose(found, [1, 1 / 3, 0, 0], rtol=1e-6)
    assert np.isnan(boxes.overlaps(jnp.zeros(4), jnp.zeros((1, 4)))[0])


@pytest.mark.parametrize("shared", [False, True])
def test_suppression_is_the_textbooks_in_every_group(shared):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((6, 40)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    found = random_boxes(rng, 1 if shared else 6, 40)
    expected = [
        (group, i, scores[group, i])
        for group in range(6)
        for i in greedy(scores[group], found[group % len(found)], 0.3)
    ]
    expected.sort(key=lambda row: -row[2])
    assert len(expected) > 60  # more than are asked for at first
    for count in (20, len(expected) + 10):
        group, index, score = jax.jit(boxes.suppress, static_argnums=(2, 3))(scores, found, 0.3, count)
        n = min(count, len(expected))
        assert [tuple(row) for row in zip(group.tolist(), index.tolist(), score.tolist(), strict=True)][:n] == [
            (g, i, float(s)) for g, i, s in expected[:n]
        ]
        assert np.isneginf(score[n:]).all()


def test_boxes_that_overlap_by_just_the_threshold_stay():
    found = jnp.asarray([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 6.0]]])
    _, index, score = boxes.suppress(jnp.asarray([[3.0, 2.0, 1.0]]), found, 0.5, 3)
    assert index.tolist()[:2] == [0, 1]  # halves; 0.6 is too much
    assert np.isneginf(score[2])


def test_images_of_a_batch_are_suppressed_apart():
    rng = np.random.default_rng(1)
    scores, found = rng.standard_normal((3, 4, 20)).astype(np.float32), random_boxes(rng, 3, 4, 20)
    together = jax.vmap(lambda s, b: boxes.suppress(s, b, 0.5, 30))(scores, found)
    for i in range(3):
        for a, b in zip(together, boxes.suppress(jnp.asarray(scores[i]), jnp.asarray(found[i]), 0.5, 30), strict=True):
            np.testing.assert_array_equal(a[i], b)
