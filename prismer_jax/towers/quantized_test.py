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
def test_nf4_takes_the_nearest_value(rows):
    x = kernel(rows)
    found = np.asarray(unpack(pack(x, "nf4"), rows))
    for start in range(0, rows, BLOCK["nf4"]):
        block = x[:, start : start + BLOCK["nf4"]]
        scale = np.asarray(jnp.abs(block).max(-2, keepdims=True).astype(jnp.bfloat16).astype(jnp.float32))
        block = np.asarray(block)
        nearest = NF4[np.abs((block / scale)[..., None] - NF4).argmin(-1)] * scale
        np.testing.assert_allclose(found[:, start : start + BLOCK["nf4"]], nearest, rtol=1e-6)


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
