import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts import winograd
from prismer_jax.experts.convolution import ConvNorm

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_transforms_compute_a_convolution_of_one_axis():
    source, of_kernel, result = winograd.transforms()
    x, kernel = np.random.default_rng(0).standard_normal((2, 6))
    expected = [x[i : i + 3] @ kernel[:3] for i in range(4)]
    np.testing.assert_allclose(result @ ((source @ x) * (of_kernel @ kernel[:3])), expected, atol=1e-12)


@pytest.mark.parametrize("together", [winograd.TOGETHER, 1])  # in one strip, in several
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 2), (0, 3)), ((-1, 1), (1, -2))])
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 21, 14)])
def test_winograd_is_the_plain_convolution(shape, padding, together, monkeypatch):
    monkeypatch.setattr(winograd, "TOGETHER", together)
    x, kernel = normal(0, *shape, 5), normal(1, 3, 3, 5, 7)
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)
    ours = jax.jit(winograd.convolve, static_argnums=2)(x, kernel, padding)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def rms(x: np.ndarray) -> float:
    return np.sqrt(np.square(x).mean())


def test_rounding_errors_stay_near_those_of_a_plain_sum():
    x, kernel = jax.nn.relu(normal(0, 1, 34, 34, 256)), normal(1, 3, 3, 256, 8)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64)[0], (3, 3), (0, 1))
    exact = np.einsum("yxcij,ijcd->yxd", windows, np.asarray(kernel, np.float64), optimize=True)
    ours = jax.jit(winograd.convolve, static_argnums=2)(x, kernel, ((0, 0), (0, 0)))[0]
    assert rms(ours - exact) < 3e-6 * rms(exact)


def has_products(layer: ConvNorm, x: jax.Array) -> bool:
    """Whether a layer is compiled to products in place of a convolution."""
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    text = jax.jit(layer.apply).lower(variables, x).as_text()
    assert ("dot_general" in text) != ("stablehlo.convolution" in text)
    return "dot_general" in text


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators convolve as XLA does")
def test_only_large_convolutions_of_3x3_are_winograds():
    x = jnp.zeros((1, 20, 20, 32))
    assert has_products(ConvNorm(32, 3, padding=1), x)
    assert has_products(ConvNorm(32, 3, padding="SAME"), x)
    assert not has_products(ConvNorm(31, 3, padding=1), x)
    assert not has_products(ConvNorm(32, 5, padding=1), x)
    assert not has_products(ConvNorm(32, 3, stride=2, padding=1), x)
    assert not has_products(ConvNorm(32, 3, padding=1), x[:, :19])
    assert not has_products(ConvNorm(32, 3, padding=1, dtype=jnp.bfloat16), x)


@pytest.mark.parametrize("padding", [1, 0, "SAME"])
def test_a_layer_computes_the_same_either_way(padding, monkeypatch):
    x = normal(0, 2, 16, 13, 32)
    layer = ConvNorm(32, 3, padding=padding)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    ours = jax.jit(layer.apply)(variables, x)
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 33)
    plain = jax.jit(lambda *args: layer.apply(*args))  # another function, or the first program would be taken
    np.testing.assert_allclose(ours, plain(variables, x), atol=1e-4)
