import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts import convolution


def transposed_by_hand(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Every input pixel adds its kernel to the output, two pixels further each time; then the padding is cut off."""
    size, (batch, height, width, _) = len(kernel), x.shape
    out = np.zeros((batch, 2 * height + size - 2, 2 * width + size - 2, kernel.shape[3]))
    for i, j in np.ndindex(height, width):
        out[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size] += np.einsum("bc,hwcd->bhwd", x[:, i, j], kernel)
    cut = size // 2 - 1
    return out[:, cut : cut + 2 * height, cut : cut + 2 * width]


@pytest.mark.parametrize("size", [2, 4, 8, 16])  # DexiNed's
def test_doubling_is_a_transposed_convolution(size):
    rng = np.random.default_rng(size)
    x, kernel = rng.standard_normal((2, 5, 7, 3)), rng.standard_normal((size, size, 3, 2))
    out = jax.jit(convolution.double)(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    assert out.shape == (2, 10, 14, 2)
    np.testing.assert_allclose(out, transposed_by_hand(x, kernel), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "shape"),
    [(3, 1, (8, 12)), (3, 2, (8, 12)), (5, 1, (7, 5)), (5, 2, (7, 5)), (5, 2, (8, 12)), (5, 2, (1, 2))],
)
def test_depthwise_convolutions_are_grouped_ones(size, stride, shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 6))
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=6
    )
    ours = jax.jit(convolution.depthwise, static_argnums=2)(x, kernel, stride)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_norm_uses_running_statistics():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    layer = convolution.ConvNorm(3, 1, epsilon=0.5)
    variables = layer.init(jax.random.key(1), x)
    variables["batch_stats"]["norm"] = {"mean": jnp.arange(3.0), "var": jnp.full(3, 3.5), "count": 0}
    conv = x @ variables["params"]["conv"]["kernel"][0, 0]
    np.testing.assert_allclose(layer.apply(variables, x), (conv - jnp.arange(3.0)) / 2, atol=1e-5)
