"""Packed kernels: what they take, how near they are, and that both directions agree with a plain search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.towers.quantized import BLOCK, NF4, pack, pack_stacked, unpack


def kernel(rows, columns=24, layers=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.02, (layers, rows, columns)), jnp.float32)


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.57), ("int8", 1.02)])
def test_bytes_a_weight(kind, most):
    packed = jax.eval_shape(lambda x: pack(x, kind), jax.ShapeDtypeStruct((18, 2048, 256), jnp.float32))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packed))
    assert size <= most * 18 * 2048 * 256


@pytest.mark.parametrize("rows", [64, 72, 129])  # whole blocks, a part of one, an odd number
def test_nf4_takes_the_nearest_value_by_a_scale_that_is_no_worse_than_the_largest_size(rows):
    x = np.asarray(kernel(rows))
    packed = pack(jnp.asarray(x), "nf4")
    found, block = np.asarray(unpack(packed, rows)), BLOCK["nf4"]

    def nearest(part, scale):
        scale = np.asarray(scale.astype(jnp.bfloat16).astype(jnp.float32))
        return NF4[np.abs((part / scale)[..., None] - NF4).argmin(-1)] * scale

    whole = 0.0
    for number, start in enumerate(range(0, rows, block)):
        part, got = x[:, start : start + block], found[:, start : start + block]
        np.testing.assert_allclose(got, nearest(part, packed["scales"][:, number : number + 1]), rtol=1e-6)
        plain = nearest(part, jnp.abs(part).max(-2, keepdims=True))
        assert (np.square(got - part).sum(1) <= np.square(plain - part).sum(1) * (1 + 1e-5)).all()
        whole += np.square(plain - part).sum()
    assert np.square(found - x).sum() < 0.9 * whole


def test_int8_is_off_by_half_a_step_at_most():
    x = kernel(200)
    error = np.abs(np.asarray(unpack(pack(x, "int8"), 200)) - x)
    assert (
        0 < error.max() <= np.abs(x).max() / 127 * 0.51 + np.abs(x).max() * 2**-8
    )  # and a scale that was rounded down


@pytest.mark.parametrize("kind", BLOCK)
def test_zeros_stay_zeros_and_layers_are_packed_apart(kind):
    x = kernel(70).at[:, :, 3].set(0)
    packed = pack_stacked(x, kind)
    jax.tree.map(np.testing.assert_array_equal, packed, jax.jit(pack, static_argnums=1)(x, kind))
    assert not np.asarray(unpack(packed, 70))[:, :, 3].any()
