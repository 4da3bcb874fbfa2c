import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import models
from prismer_jax.errors import UserError
from prismer_jax.losses import apply, cross_entropy, token_costs

LOGITS = np.random.RandomState(0).standard_normal((2, 5, 7)).astype(np.float32)
TEXT = np.array([[0, 4, 5, 2, 1], [0, 3, 2, 1, 1]], np.int32)
MASK = np.array([[0, 0, 1, 1, 0], [0, 0.2, 0.2, 0, 0]], np.float32)
BATCH = {"text": jnp.asarray(TEXT), "mask_loss": jnp.asarray(MASK)}


def by_hand(example: int, smoothing: float) -> float:
    total = 0.0
    for t in range(1, 5):
        log_probs = np.log(np.exp(LOGITS[example, t - 1]) / np.exp(LOGITS[example, t - 1]).sum())
        total -= MASK[example, t] * ((1 - smoothing) * log_probs[TEXT[example, t]] + smoothing * log_probs.mean())
    return total


def loss(**settings):
    costs, weights = cross_entropy(lambda batch: jnp.asarray(LOGITS), BATCH, **settings)["loss"]
    return np.asarray(costs), np.asarray(weights)


def test_the_loss_sums_smoothed_costs_of_weighted_tokens():
    for smoothing in (0.0, 0.1):
        costs, weights = loss(label_smoothing=smoothing)
        np.testing.assert_allclose(costs, [by_hand(0, smoothing), by_hand(1, smoothing)], rtol=1e-5)
        assert weights.tolist() == [1, 1]


def test_a_mean_over_the_tokens_of_an_example_counts_by_the_example_s_weight():
    """A row's `weight`, 0.2 of the second, is that of each of its tokens: it must not be divided out again."""
    costs, weights = loss(normalize="example")
    np.testing.assert_allclose(costs, [by_hand(0, 0.1) / 2, by_hand(1, 0.1) / 2], rtol=1e-5)
    assert weights.tolist() == [1, 1]


def test_a_mean_over_the_tokens_of_a_batch_weighs_every_token_alike():
    costs, weights = loss(normalize="batch")
    np.testing.assert_allclose(costs.sum() / weights.sum(), (by_hand(0, 0.1) + by_hand(1, 0.1)) / 2.4, rtol=1e-5)


def test_a_misspelt_normalization_is_a_user_error():
    with pytest.raises(UserError, match="Did you mean 'batch'"):
        loss(normalize="bach")


def test_positions_without_weight_cost_nothing_whatever_their_logits():
    """Infinite logits at ignored positions must not make the loss or its gradient NaN."""
    logits = jnp.asarray(LOGITS).at[0, 3].set(jnp.inf)

    def total(x):
        return token_costs(x, jnp.asarray(TEXT), jnp.asarray(MASK)).sum()

    assert np.isfinite(total(logits))
    gradient = jax.grad(total)(jnp.asarray(LOGITS))
    assert not np.asarray(gradient)[0, 3].any()
    assert np.asarray(gradient)[0, 2].any()


def test_what_a_model_lacks_of_its_loss_is_one_clear_line():
    """PrismerZ's words are few: it makes no loss in chunks."""
    forward = functools.partial(apply, models.build(experts=()), {})
    with pytest.raises(
        UserError, match=r"^config\.loss needs 'text_costs', which \w+ lacks: change its name or chunk\.$"
    ):
        cross_entropy(forward, BATCH, chunk=2)
