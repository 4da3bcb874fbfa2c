"""Gradients are sums over all tokens of a batch, which bfloat16 cannot count: 256 + 1 is 256 there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.models.prismer.encoder import VisionEncoder
from prismer_jax.towers.layers import Dense
from prismer_jax.towers.roberta import TextDecoder

ROWS = 512  # all alike


def encoder():
    sizes = dict(image_size=16, patch_size=8, width=8, depth=1, heads=1, latents=2, resampler_layers=1)
    model = VisionEncoder(("depth",), **sizes, resampler_heads=1, dtype=jnp.bfloat16)
    image = np.random.RandomState(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
    return model, (image, {"depth": image[..., :1]})


def decoder():
    sizes = dict(width=8, layers=1, heads=1, mlp_dim=16, vocab_size=20, max_positions=9)
    model = TextDecoder(**sizes, dtype=jnp.bfloat16)
    ids = np.array([[[5, 6, 5, 7, 5, 2]]], np.int32)  # a frequent token among them
    encoded = np.random.RandomState(0).standard_normal((1, 3, 8)).astype(np.float32)
    return model, (ids, ids * 0 + np.arange(2, 8, dtype=np.int32), {"new": np.ones((1, 1, 6, 6), bool)}, encoded)


def gradients(model, args, weights):
    """Returns (gradient, gradient) of the weighted sum of all rows' losses, for each of two weightings of the rows."""
    rows = jax.tree.map(lambda x: jnp.asarray(np.repeat(x, ROWS, 0)), args)
    variables = model.init(jax.random.key(0), *jax.tree.map(jnp.asarray, args))

    @jax.jit
    def gradient(params, rows, weights):
        def loss(params):
            out = model.apply({**variables, "params": params}, *rows)
            out = out[0] if isinstance(out, tuple) else out
            out = jnp.square(out.astype(jnp.float32)).reshape(ROWS, -1).mean(-1)
            return (out * weights).sum()

        return jax.grad(loss)(params)

    return [tree.flatten(gradient(variables["params"], rows, jnp.asarray(w))) for w in weights]


@pytest.mark.parametrize("tower", [encoder, decoder])
def test_many_equal_rows_have_the_gradient_of_one_as_often(tower):
    """Word, position and type embeddings, latents, kernels, biases and norms; also under the scan over layers."""
    all_rows, one_row = gradients(*tower(), (np.ones(ROWS, "f"), np.eye(1, ROWS, dtype="f")[0]))
    for name, gradient in all_rows.items():
        expected = np.asarray(one_row[name]) * ROWS
        if not name.endswith("key/bias"):  # softmax cancels it: its gradient is rounding alone
            assert np.abs(expected).max() > 0, name
            error = np.linalg.norm(np.asarray(gradient) - expected) / np.linalg.norm(expected)
            assert error < 0.01, (name, error)


def test_the_gradient_of_a_bias_counts_every_token():
    dense = Dense(4, dtype=jnp.bfloat16)
    x = jnp.ones((64, 64, 2), jnp.bfloat16)
    variables = dense.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v, x: dense.apply(v, x).astype(jnp.float32).sum()))(variables, x)
    np.testing.assert_array_equal(gradient["params"]["bias"], np.full(4, 4096.0))  # flax's Dense: 1024
    assert dense.apply(variables, x).dtype == jnp.bfloat16
