"""Greedy decoding and sampling on the toy model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.decode.batch import check
from prismer_jax.decode.greedy import greedy
from prismer_jax.decode.sampling import narrow, sample
from prismer_jax.errors import UserError

PAD, EOS = 1, 2


def log_prob_of(model, row, tokens, width):
    """Sums the model's log-probabilities of what follows the prompt, up to the first eos; returns it and the length."""
    total = 0.0
    for end in range(width, len(tokens)):
        total += model.log_probs(row, tokens[:end], width)[tokens[end]]
        if tokens[end] == EOS:
            return total, end + 1
    return total, len(tokens)


def test_greedy_takes_the_best_token_until_eos(toy):
    lengths = set()
    for seed in range(12):
        model = toy.random(seed, eos=1.5)
        prompt = np.array([[5, 6, 7], [5, 6, PAD], [PAD, 6, 7]])
        tokens, scores = model.run(greedy, prompt, max_len=10, min_len=5)
        for row in range(3):
            found = prompt[row].tolist()
            while len(found) < 10 and found[-1] != EOS:
                log_probs = model.log_probs(row, found, 3)
                if len(found) < 5:
                    log_probs[EOS] = -np.inf
                found.append(int(log_probs.argmax()))
            assert tokens[row, 0].tolist() == (found + [PAD] * 10)[:10]
            np.testing.assert_allclose(scores[row, 0], log_prob_of(model, row, found, 3)[0], rtol=1e-5, atol=1e-5)
            lengths.add(len(found))
    assert len(lengths) > 2


def test_samples_follow_the_models_distribution_at_the_temperature(toy):
    model = toy.random(1, sharpness=0.3, batch=2)
    prompt = np.array([[5, 6], [7, PAD]])
    count = 4000
    tokens, _ = model.run(sample, prompt, max_len=3, num_samples=count, rng=jax.random.key(0), temperature=0.5)
    for row in range(2):
        probs = np.exp(model.log_probs(row, prompt[row].tolist(), 2) / 0.5)
        found = np.bincount(tokens[row, :, 2], minlength=12) / count
        np.testing.assert_allclose(found, probs / probs.sum(), atol=4 * np.sqrt(0.25 / count))


def test_logits_of_bfloat16_are_sampled_as_evenly_as_those_of_float32(toy):
    """jax.random.categorical draws noise of their type: 99.9% of such samples would be among the first quarter."""

    class Half(toy):
        def _logits(self, cache, ends):
            return super()._logits(cache, ends).astype(jnp.bfloat16)

    model = Half(*toy.random(0, vocab=4096, batch=1, sharpness=0.0))
    count = 1000
    tokens, _ = model.run(sample, np.array([[5, 6]]), max_len=3, num_samples=count, rng=jax.random.key(0))
    quarters = np.bincount(tokens[0, :, 2] // 1024, minlength=4) / count
    np.testing.assert_allclose(quarters, 0.25, atol=0.06)


def test_a_score_is_the_models_own_log_probability_whatever_was_cut_off(toy):
    model = toy.random(2, eos=1.0)
    prompt = np.array([[5, 6], [7, 8], [9, PAD]])
    tokens, scores = model.run(
        sample, prompt, max_len=9, min_len=4, num_samples=5, rng=jax.random.key(1), temperature=2, top_p=0.9, top_k=6
    )
    for row in range(3):
        for i in range(5):
            found = tokens[row, i].tolist()
            total, end = log_prob_of(model, row, found, 2)
            np.testing.assert_allclose(scores[row, i], total, rtol=1e-5, atol=1e-5)
            assert found[end:] == [PAD] * (9 - end)
            assert EOS not in found[2:4]
    assert len({tuple(t) for t in tokens.reshape(-1, 9).tolist()}) > 3


def test_the_only_candidate_is_the_greedy_one(toy):
    model = toy.random(3, eos=1.0)
    prompt = np.array([[5, 6], [7, 8], [9, 4]])
    best, _ = model.run(greedy, prompt, max_len=9)
    tokens, _ = model.run(sample, prompt, max_len=9, rng=jax.random.key(0), top_k=1)
    assert (tokens == best).all()


def test_a_row_draws_the_same_whatever_the_size_of_the_batch(toy):
    model = toy.random(4)
    prompt = np.array([[5, 6], [7, 8], [9, 4]])
    tokens, _ = model.run(sample, prompt, max_len=8, num_samples=2, rng=jax.random.key(7))
    alone, _ = model._replace(image=model.image[:1]).run(
        sample, prompt[:1], max_len=8, num_samples=2, rng=jax.random.key(7)
    )
    other, _ = model.run(sample, prompt, max_len=8, num_samples=2, rng=jax.random.key(8))
    assert (alone == tokens[:1]).all()
    assert (other != tokens).any()
    assert (tokens[:, 0] != tokens[:, 1]).any()


def test_narrow_keeps_the_smallest_set_that_reaches_top_p():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))

    def kept(**cut):
        return np.flatnonzero(np.isfinite(narrow(logits, **cut))).tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.6) == [1, 3]
    assert kept(top_p=0.95) == [0, 1, 2, 3]
    assert kept(top_k=3, top_p=0.7) == [1, 3]  # of what top_k leaves: 0.4/0.9 + 0.3/0.9 = 0.78


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have no TopK to be called")
def test_no_row_is_sorted_for_its_largest():
    program = jax.jit(lambda logits: narrow(logits, top_k=40)).lower(jnp.ones((2, 5003))).compile().as_text()
    assert 'custom_call_target="TopK"' in program
    assert " sort(" not in program


@pytest.mark.parametrize(
    "setting", [dict(temperature=0.0), dict(top_p=0.0), dict(top_k=-1), dict(num_samples=0), dict(num_return=2)]
)
def test_settings_out_of_range_are_the_users_error(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        check({"method": "sample", "max_new": 5, **setting}, "config.tasks.caption.decode")
