"""Packed kernels: what they take, how near they are, and that both directions agree with a plain search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.towers.quantized import BASES, BASES_TRIED, BLOCK, NF4, SCALES, pack, pack_stacked, unpack


def kernel(rows, columns=24, layers=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.02, (layers, rows, columns)), jnp.float32)


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.57), ("int8", 1.02)])
def test_bytes_a_weight(kind, most):
    packed = jax.eval_shape(lambda x: pack(x, kind), jax.ShapeDtypeStruct((18, 2048, 256), jnp.float32))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packed))
    assert size <= most * 18 * 2048 * 256


def nearest(part, scale):
    return NF4[np.abs((part / scale)[..., None] - NF4).argmin(-1)] * scale


@pytest.mark.parametrize("rows", [64, 72, 129])  # whole blocks, a part of one, an odd number
def test_nf4_takes_the_nearest_values_by_the_best_of_its_bases_and_scales(rows):
    x = np.asarray(kernel(rows))
    packed = pack(jnp.asarray(x), "nf4")
    found, largest = np.asarray(unpack(packed, rows)), np.abs(x).max(1, keepdims=True)
    first = np.abs(np.log(BASES / largest[..., None])).argmin(-1)

    def best(bases):
        """Returns the nearest that blocks come by one of all scales, each with these bases of the columns."""
        made = np.zeros_like(x)
        for start in range(0, rows, BLOCK["nf4"]):
            part = x[:, start : start + BLOCK["nf4"]]
            tried = [nearest(part, BASES[bases] * scale) for scale in SCALES]
            least = np.argmin([np.square(one - part).sum(1) for one in tried], 0)
            made[:, start : start + part.shape[1]] = np.choose(least[:, None], tried)
        return made

    errors = np.array([np.square(best(first + more) - x).sum(1) for more in BASES_TRIED])
    error = np.square(found - x).sum(1)
    assert (errors.min(0) * (1 - 1e-4) <= error).all()
    assert error.sum() < errors.min(0).sum() * 1.02  # few blocks are best by a scale that is not tried
    assert set(np.argmin(errors, 0).ravel()) == set(range(len(BASES_TRIED)))  # none is tried in vain


def test_nf4_is_nearer_than_blocks_of_64_with_their_largest_size():
    x = np.asarray(kernel(512))
    blocks = x.reshape(3, 8, 64, 24)
    plain = nearest(blocks, np.abs(blocks).max(2, keepdims=True)) - blocks
    error = np.asarray(unpack(pack(jnp.asarray(x), "nf4"), 512)) - x
    assert np.square(error).sum() < 0.5 * np.square(plain).sum()


@pytest.mark.parametrize("size", [1e-3, 1.0, 20.0])
def test_nf4_has_scales_for_small_and_large_kernels(size):
    x = np.asarray(kernel(64)) * size / 0.02
    error = np.asarray(unpack(pack(jnp.asarray(x), "nf4"), 64)) - x
    assert np.square(error).mean() < 0.005 * np.square(x).mean()


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
    whole = jax.jit(pack, static_argnums=1)(x, kind)  # two bases may be as good, to the last bit of a sum
    np.testing.assert_allclose(unpack(packed, 70), unpack(whole, 70), rtol=1e-6)
    assert not np.asarray(unpack(packed, 70))[:, :, 3].any()
