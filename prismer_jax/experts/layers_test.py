import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from prismer_jax.experts import layers
from prismer_jax.experts.segmentation.pixel_decoder import group_norm
from prismer_jax.towers.stem import resize


def test_standardized_weights_are_blind_to_scale_and_offset_and_pad_at_the_end():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 2))
    conv = layers.StandardizedConv(4, 3, 2)
    variables = conv.init(jax.random.key(1), x)
    out = conv.apply(variables, x)
    moved = jax.tree.map(lambda kernel: 3 * kernel + 0.5, variables)
    np.testing.assert_allclose(conv.apply(moved, x), out, atol=1e-4)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
    # Stride 2 on an even side: nothing before the first pixel, one row and column of zeros after the last.
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_allclose(out[0, 0, 0], np.einsum("hwc,hwcd->d", padded[0, :3, :3], kernel), atol=1e-4)
    np.testing.assert_allclose(out[0, 2, 2], np.einsum("hwc,hwcd->d", padded[0, 4:, 4:], kernel), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_takes_each_group_over_the_whole_map(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 12)).astype(dtype) * 3 + 10
    norm = layers.GroupNorm(groups=4)
    variables = {"params": {"scale": jnp.arange(12.0), "bias": jnp.ones(12)}}
    out = norm.apply(variables, x)
    assert out.dtype == x.dtype
    y = np.asarray(x, np.float64).reshape(2, 35, 4, 3)
    y = (y - y.mean((1, 3), keepdims=True)) / y.std((1, 3), keepdims=True)
    tolerance = 1e-3 if dtype == "float32" else 0.1
    np.testing.assert_allclose(np.asarray(out, np.float64), y.reshape(x.shape) * np.arange(12) + 1, atol=tolerance)


def test_group_norms_survive_a_mean_that_is_large_beside_the_spread():
    """As towers/layers_test.py says of LayerNorm."""
    x = jnp.asarray(8192 + np.random.RandomState(0).standard_normal((1, 16, 16, 64)), jnp.float32)
    for norm in (layers.GroupNorm(groups=32), group_norm()):
        y = norm.apply(norm.init(jax.random.key(0), x), x)
        np.testing.assert_allclose(np.std(y), 1, rtol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (12, 30), (40, 7), (20, 24)])
def test_maps_are_resized_on_the_host_as_on_the_device(size):
    x = np.random.default_rng(0).random((20, 24, 3), np.float32)
    np.testing.assert_allclose(layers.resize_map(x, size), resize(jnp.asarray(x)[None], size)[0], atol=1e-6)
    flat = layers.resize_map(x[..., 0], size)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, layers.resize_map(x, size)[..., 0])


def test_bytes_are_cut_off_and_clipped():
    x = np.array([-1, 0, 0.999, 1 / 255, 1, 2], np.float32)
    np.testing.assert_array_equal(layers.to_bytes(x), [0, 0, 254, 1, 255, 255])


def test_photos_are_resized_as_pillow_does_it():
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = Image.fromarray(photo).resize((9, 7), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(layers.resize_photo(photo, (7, 9)), np.asarray(expected))
