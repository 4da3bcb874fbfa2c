import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.training.accumulate import in_parts


def loss_fn(params, stats, batch, rng):
    out = jnp.tanh(batch["x"] @ params["w"]) - batch["y"]
    loss = jnp.sum(out**2)
    stats = {"mean": 0.9 * stats["mean"] + 0.1 * batch["x"].mean(0), "draws": stats["draws"] + jax.random.uniform(rng)}
    return loss, (stats, {"loss": loss, "examples": jnp.asarray(len(out), jnp.float32)})


def gradient_of(*seen):
    gradient, (stats, sums) = jax.grad(loss_fn, has_aux=True)(*seen)
    return gradient, stats, sums


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(5, 3)).astype("f")}
    batch = {"x": rng.normal(size=(8, 5)).astype("f"), "y": rng.normal(size=(8, 3)).astype("f")}
    stats, key = {"mean": jnp.zeros(5), "draws": jnp.zeros(())}, jax.random.key(0)
    gradient, _, sums = gradient_of(params, stats, batch, key)
    result = jax.jit(in_parts(gradient_of, parts))(params, stats, batch, key)
    np.testing.assert_allclose(result[0]["w"], gradient["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result[2]["loss"], sums["loss"], rtol=1e-6)
    assert result[2]["examples"] == sums["examples"] == 8
    # The running mean saw the parts one after the other, each with another key.
    mean = np.zeros(5)
    for i in range(parts):
        mean = 0.9 * mean + 0.1 * batch["x"][i::parts].mean(0)
    np.testing.assert_allclose(result[1]["mean"], mean, rtol=1e-5)
    draws = sum(float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(parts))
    assert float(result[1]["draws"]) == pytest.approx(draws, rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    batch = {"x": np.zeros((8, 5), "f"), "y": np.zeros((8, 3), "f")}
    stats = {"mean": jnp.zeros(5), "draws": jnp.zeros(())}
    with pytest.raises(UserError, match="8 cannot be accumulated in 3"):
        in_parts(gradient_of, 3)({"w": jnp.zeros((5, 3))}, stats, batch, jax.random.key(0))
