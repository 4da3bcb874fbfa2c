import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prismer_jax.experts.segmentation.deformable_attention import DeformableAttention, deformable_attention

SIZES = ((2, 3), (5, 4), (1, 1))
BATCH, QUERIES, HEADS, POINTS, DEPTH = 2, 4, 3, 2, 5


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((BATCH, sum(h * w for h, w in SIZES), HEADS, DEPTH))
    points = rng.uniform(-0.3, 1.3, (BATCH, QUERIES, HEADS, len(SIZES), POINTS, 2))  # some are outside
    weights = rng.random((BATCH, QUERIES, HEADS, len(SIZES), POINTS))
    return values.astype(np.float32), points.astype(np.float32), weights.astype(np.float32)


def one_by_one(values, points, weights):
    """Bilinear interpolation pixel by pixel, from its definition: each pixel counts by how near its centre is."""
    out = np.zeros((BATCH, QUERIES, HEADS, DEPTH))
    for b, q, head, level, point in np.ndindex(BATCH, QUERIES, HEADS, len(SIZES), POINTS):
        height, width = SIZES[level]
        start = sum(h * w for h, w in SIZES[:level])
        x, y = points[b, q, head, level, point] * (width, height)
        for row, column in np.ndindex(height, width):
            near = max(0, 1 - abs(x - column - 0.5)) * max(0, 1 - abs(y - row - 0.5))
            pixel = values[b, start + row * width + column, head]
            out[b, q, head] += weights[b, q, head, level, point] * near * pixel
    return out


def test_equals_a_loop_over_all_pixels(inputs):
    out = jax.jit(lambda *args: deformable_attention(args[0], SIZES, *args[1:]))(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(out, one_by_one(*inputs), atol=1e-5)


def test_is_differentiable_in_everything(inputs):
    values, points, weights = map(jnp.asarray, inputs)
    # Away from the pixels' centres, where the slope changes.
    points = jnp.round(points * 7) / 7 + 0.031
    attention = jax.jit(lambda *args: deformable_attention(args[0], SIZES, *args[1:]))
    check_grads(attention, (values, points, weights), 1, "rev", atol=1e-2, rtol=1e-2)


def test_accumulates_in_float32(inputs):
    values, points, weights = map(jnp.asarray, inputs)
    attention = jax.jit(lambda values: deformable_attention(values, SIZES, points, weights))
    out = attention(values.astype(jnp.bfloat16))
    assert out.dtype == jnp.float32
    exact = attention(values.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(out, exact, atol=1e-6)


def test_offsets_are_pixels_from_the_queries_own_place():
    module = DeformableAttention(((3, 4), (6, 8)), heads=1, points=1)
    x = jnp.arange(60.0)[None, :, None]
    places = jnp.asarray([[0.625, 0.5]])  # the centre of (row 1, column 2) of the smaller map
    params = jax.jit(module.init)(jax.random.key(0), x[:, :1], x, places)["params"]
    one, zero = jnp.ones((1, 1)), jnp.zeros
    params |= {"value": {"kernel": one, "bias": zero(1)}, "out": {"kernel": one, "bias": zero(1)}}
    # To the left by one pixel on the smaller map, which alone is looked at.
    params |= {"offsets": {"kernel": zero((1, 4)), "bias": jnp.asarray([-1.0, 0, 0, 0])}}
    params |= {"weights": {"kernel": zero((1, 2)), "bias": jnp.asarray([50.0, -50])}}
    out = jax.jit(module.apply)({"params": params}, x[:, :1], x, places)
    np.testing.assert_allclose(out, [[[1 * 4 + 1]]], rtol=1e-6)
