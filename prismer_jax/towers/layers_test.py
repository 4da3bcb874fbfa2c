import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prismer_jax.towers import layers, stem


def test_attention_is_softmax_of_scaled_products():
    q, k, v = (np.random.RandomState(i).standard_normal((2, 3, 2, 4)).astype(np.float32) for i in range(3))
    mask = np.tri(3, dtype=bool)
    q, k, v = map(jnp.asarray, (q, k, v))
    out = layers.attend(q, layers.Keys(k, v, jnp.asarray(mask)))
    for b, t, h in np.ndindex(2, 3, 2):
        weights = np.exp(q[b, t, h] @ k[b, : t + 1, h].T / 2)
        np.testing.assert_allclose(out[b, t, h], weights / weights.sum() @ v[b, : t + 1, h], rtol=2e-5, atol=1e-6)


def test_a_row_that_sees_nothing_is_the_mean_and_never_nan():
    """Left padding makes such rows; a NaN there would reach every gradient."""
    x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 3, 1, 4)), jnp.float32)

    def mean(x):
        return layers.attend(x, layers.Keys(x, x, jnp.zeros((3, 3), bool)))

    np.testing.assert_allclose(mean(x)[0, 1], x[0].mean(0), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: mean(x).sum())(x)).all()


def test_parts_of_keys_under_one_softmax_equal_the_joined_keys():
    """A part without the sequence axis is shared by all sequences of a row."""
    rng = np.random.RandomState(0)
    q, own = (jnp.asarray(rng.standard_normal((2, 3, n, 2, 4)), jnp.float32) for n in (4, 5))
    shared = jnp.asarray(rng.standard_normal((2, 6, 2, 4)), jnp.float32)
    masks = (jnp.asarray(rng.rand(2, 1, 1, 6) > 0.3), jnp.asarray(rng.rand(3, 4, 5) > 0.3))
    parts = (layers.Keys(shared, 2 * shared, masks[0]), layers.Keys(own, -own, masks[1]))
    keys = jnp.concatenate([jnp.broadcast_to(shared[:, None], (2, 3, 6, 2, 4)), own], axis=2)
    values = jnp.concatenate([jnp.broadcast_to(2 * shared[:, None], (2, 3, 6, 2, 4)), -own], axis=2)
    mask = jnp.concatenate([jnp.broadcast_to(m, (2, 3, 4, m.shape[-1])) for m in masks], axis=-1)
    joined = layers.attend(q, layers.Keys(keys, values, mask))
    np.testing.assert_allclose(layers.attend(q, *parts), joined, rtol=1e-5, atol=1e-6)


def test_layer_norm_computes_in_float32():
    x = jnp.asarray(1000 + np.random.RandomState(0).standard_normal((4, 64)), jnp.bfloat16)
    norm = layers.LayerNorm()
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=0.02)


def test_norms_survive_a_mean_that_is_large_beside_the_spread():
    """E[x²] - E[x]², the default of flax's norms (use_fast_variance, 0.12.8), gives a spread of 1847 at this mean."""
    x = jnp.asarray(8192 + np.random.RandomState(0).standard_normal((64, 64)), jnp.float32)
    for norm, axis in ((layers.LayerNorm(), -1), (stem.BatchNorm(train=True), 0)):
        variables = norm.init(jax.random.key(0), x)
        y = norm.apply(variables, x, mutable=["batch_stats"])[0]
        np.testing.assert_allclose(y.std(axis), 1, rtol=0.01)
        np.testing.assert_allclose(y.mean(axis), 0, atol=0.01)


def test_bicubic_rows_sum_to_one_over_four_taps():
    """Four taps also when shrinking: the reference does not antialias."""
    for old, new in ((14, 30), (24, 16), (6, 14)):
        matrix = layers.bicubic_matrix(old, new)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        assert np.count_nonzero(matrix[new // 2]) <= 4
    np.testing.assert_array_equal(layers.bicubic_matrix(7, 7), np.eye(7))


def test_positions_resize_to_a_rectangle():
    table = np.arange(9.0, dtype=np.float32)[:, None]
    out = layers.resize_positions(table, (3, 6))
    assert out.shape == (18, 1)
    assert float(out[0, 0]) < float(out[5, 0]) < float(out[6, 0])  # along a row, then down a row
    np.testing.assert_array_equal(layers.resize_positions(table, (3, 3)), table)


@pytest.mark.parametrize(("remat", "products"), [("none", 8), ("dots", 8), ("full", 9)])
def test_dots_keeps_products_with_kernels(remat, products):
    """Two forward, six backward (two of biases); the second of a layer needs the first again unless that is kept."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + layers.MLP(8, layers.squared_relu)(x), None

    stack = layers.stack(Layer, 3, remat, broadcast=0)()
    x = jnp.ones((2, 4))
    variables = stack.init(jax.random.key(0), x)
    gradient = jax.make_jaxpr(jax.grad(lambda variables: stack.apply(variables, x)[0].sum()))(variables)
    assert str(gradient).count("dot_general[") == products
