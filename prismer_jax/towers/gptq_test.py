"""Kernels packed by what they read: rounding in float64, one row after the other, and what becomes of the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.towers import gptq, quantized


def inputs(rows, tokens=400, seed=0):
    """Returns tokens that lie near few directions, as activations do."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(tokens, rows // 4)) @ rng.normal(size=(rows // 4, rows))
    return few + 0.3 * rng.normal(size=(tokens, rows))


def kernel(rows, columns=12, seed=1):
    return np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)


def off(x, w, packed):
    """Returns how far outputs are off, in parts of their squares."""
    error = x @ (np.float64(quantized.unpack(packed, len(w))) - w)
    return np.square(error).sum() / np.square(x @ w).sum()


@pytest.mark.parametrize("rows", [64, 84, 129])  # whole blocks, a part of one, an odd number
def test_outputs_change_by_a_fraction_of_what_the_nearest_codes_change(rows):
    x, w = inputs(rows, tokens=1000), kernel(rows)
    packed = jax.jit(gptq.pack)(w, gptq.products(jnp.asarray(x[:500])))
    plain = quantized.pack(jnp.asarray(w), "nf4")
    assert jax.tree.map(lambda a: (a.shape, a.dtype), packed) == jax.tree.map(lambda a: (a.shape, a.dtype), plain)
    assert off(x[500:], w, packed) < 0.3 * off(x[500:], w, plain)  # of tokens that it was not packed by


def test_inputs_that_tell_nothing_of_each_other_give_the_nearest_codes():
    w = kernel(72)
    packed, plain = gptq.pack(jnp.asarray(w), jnp.eye(72)[None]), quantized.pack(jnp.asarray(w), "nf4")
    np.testing.assert_allclose(quantized.unpack(packed, 72), quantized.unpack(plain, 72), rtol=1e-6)


def test_codes_are_those_of_the_paper_row_after_row():
    """Algorithm 1 of arXiv 2210.17323 in float64, with its inverse taken whole, and with the scales that were found."""
    rows = 40
    x, w = inputs(rows), kernel(rows)
    packed = gptq.pack(jnp.asarray(w), gptq.products(jnp.asarray(x)))
    said = np.asarray(quantized.unpack(packed, rows))
    packed = jax.device_get(packed)
    scales = np.stack([packed["scales"] & 15, packed["scales"] >> 4], 1).reshape(-1, w.shape[1])[: rows // 8]
    scales = np.repeat(quantized.BASES[packed["bases"]] * quantized.SCALES[scales], 8, 0)
    products = x.T @ x
    products += np.eye(rows) * gptq.DAMPING * np.diag(products).mean()
    factor, left, made = np.linalg.cholesky(np.linalg.inv(products)).T, np.float64(w), np.zeros_like(w)
    for row in range(rows):
        made[row] = quantized.NF4[np.abs(left[row] / scales[row] - quantized.NF4[:, None]).argmin(0)] * scales[row]
        left -= np.outer(factor[row] / factor[row, row], left[row] - made[row])
    same = np.isclose(made, said, rtol=1e-5)
    assert same.all(0).mean() > 0.8  # a weight between two codes goes either way, and its column from there on


def test_wide_kernels_are_packed_in_groups_of_rows(monkeypatch):
    x, w = inputs(96), kernel(96)
    monkeypatch.setattr(gptq, "ROWS", 40)
    assert gptq.groups(96) == (3, 32)
    assert gptq.groups(98) == (3, 40)
    read = gptq.products(jnp.asarray(x))
    assert read.shape == (3, 32, 32)
    packed, plain = gptq.pack(jnp.asarray(w), read), quantized.pack(jnp.asarray(w), "nf4")
    assert off(x, w, packed) < 0.9 * off(x, w, plain)
    tiny = gptq.pack(jnp.asarray(w), 1e-30 * read)  # as squares of gradients may be
    np.testing.assert_allclose(quantized.unpack(tiny, 96), quantized.unpack(packed, 96), rtol=1e-5)


def test_rows_that_nothing_reads_are_packed_all_the_same():
    w = np.stack([kernel(48)] * 2)
    packed = gptq.pack_stacked(jnp.asarray(w), jnp.zeros((2, 1, 48, 48)))
    np.testing.assert_allclose(
        quantized.unpack(packed, 48), quantized.unpack(quantized.pack(jnp.asarray(w), "nf4"), 48), rtol=1e-6
    )
