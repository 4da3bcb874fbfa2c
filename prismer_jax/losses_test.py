import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.losses import cross_entropy

LOGITS = np.random.RandomState(0).standard_normal((2, 5, 7)).astype(np.float32)
TEXT = np.array([[0, 4, 5, 2, 1], [0, 3, 2, 1, 1]], np.int32)
MASK = np.array([[0, 0, 1, 1, 0], [0, 0.2, 0.2, 0, 0]], np.float32)


def by_hand(example: int, smoothing: float) -> float:
    total = 0.0
    for t in range(1, 5):
        log_probs = np.log(np.exp(LOGITS[example, t - 1]) / np.exp(LOGITS[example, t - 1]).sum())
        total -= MASK[example, t] * ((1 - smoothing) * log_probs[TEXT[example, t]] + smoothing * log_probs.mean())
    return total


def test_sums_smoothed_losses_of_weighted_tokens():
    for smoothing in (0.0, 0.1):
        np.testing.assert_allclose(
            cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TEXT), jnp.asarray(MASK), label_smoothing=smoothing),
            [by_hand(0, smoothing), by_hand(1, smoothing)],
            rtol=1e-5,
        )


def test_mean_over_tokens_does_not_depend_on_the_weights_scale():
    per_token = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TEXT), jnp.asarray(MASK), per_token=True)
    np.testing.assert_allclose(per_token, [by_hand(0, 0.1) / 2, by_hand(1, 0.1) / 0.4], rtol=1e-5)


def test_positions_without_weight_cost_nothing_whatever_their_logits():
    """Infinite logits at ignored positions must not make the loss or its gradient NaN."""
    logits = jnp.asarray(LOGITS).at[0, 3].set(jnp.inf)

    def loss(x):
        return cross_entropy(x, jnp.asarray(TEXT), jnp.asarray(MASK)).sum()

    assert np.isfinite(loss(logits))
    gradient = jax.grad(loss)(jnp.asarray(LOGITS))
    assert not np.asarray(gradient)[0, 3].any()
    assert np.asarray(gradient)[0, 2].any()
