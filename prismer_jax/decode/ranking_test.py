"""Ranking of answers on the toy model, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.batch import prompts
from prismer_jax.decode.ranking import rank

PAD, EOS = 1, 2


def slow_rank(model, row, prompt, answers, k, smoothing):
    first = model.log_probs(row, prompt, len(prompt))[answers[:, 0]]
    candidates = np.argsort(-first, kind="stable")[:k]
    scores = []
    for answer in answers[candidates]:
        answer = [t for t in answer.tolist() if t != PAD]
        losses = []
        for i, token in enumerate(answer):
            log_probs = model.log_probs(row, prompt + answer[:i], len(prompt))
            losses.append(-(1 - smoothing) * log_probs[token] - smoothing * log_probs.mean())
        scores.append(-np.mean(losses))
    return candidates[int(np.argmax(scores))], candidates, scores


@pytest.mark.parametrize(("k", "length", "smoothing"), [(4, 5, 0.1), (7, 2, 0.0), (1, 3, 0.1), (3, 1, 0.1)])
def test_equals_the_definition(toy, k, length, smoothing):
    rng = np.random.default_rng(0)
    answers = rng.permuted(np.tile(np.arange(3, 12), (7, 1)), axis=1)[:, :length]
    answers[:, 0] = np.arange(3, 10)  # another first token for each: no ties
    for row, end in enumerate(rng.integers(1, length + 1, size=7)):
        answers[row, end:] = PAD
    for seed in range(5):
        model = toy.random(seed)
        prompt = np.array([[4, 5, 6], [4, PAD, PAD], [PAD, PAD, 6]])
        best, candidates, scores = model.run(rank, prompt, answers.astype(np.int32), k=k, label_smoothing=smoothing)
        for row in range(3):
            expected = slow_rank(model, row, prompt[row].tolist(), answers, k, smoothing)
            assert best[row] == expected[0]
            assert candidates[row].tolist() == expected[1].tolist()
            np.testing.assert_allclose(scores[row], expected[2], rtol=1e-5)


def test_answers_that_begin_alike_are_taken_in_their_order(toy):
    answers = np.array([[4, 5, EOS], [6, 7, EOS], [4, 8, EOS], [4, 9, EOS]], np.int32)
    model = toy.random(0)
    model.bias[4] = 99.0
    _, candidates, _ = model.run(rank, np.full((3, 2), 5), answers, k=2)
    assert candidates.tolist() == [[0, 2]] * 3


def test_rows_of_padding_are_no_answers(toy):
    answers = np.array([[PAD, PAD], [4, EOS], [PAD, PAD]], np.int32)
    model = toy.random(0)
    model.bias[PAD] = 20.0  # the model would say so
    best, candidates, scores = model.run(rank, np.full((3, 2), 5), answers, k=5)
    assert best.tolist() == [1, 1, 1]
    assert candidates.shape == (3, 3)  # no more than there are
    assert np.isneginf(scores[:, 1:]).all()


def test_answers_that_begin_alike_share_what_is_read(toy):
    """The prompt is computed once, and the answers' trees in rooms of a few sizes, of which the smallest is run."""
    model, seen, run = toy.random(0), [], []

    def prefill(encoded, batch, room):
        seen.append(("prompt", batch["text"].shape))
        return model.prefill(encoded, batch, room)

    def extend(cache, tokens, tree):
        seen.append(("answers", tokens.shape))
        jax.debug.callback(lambda: run.append(tokens.shape[2]))
        return model.extend(cache, tokens, tree)

    answers = np.array([[3 + i % 9, 4 + i % 5, EOS, PAD] for i in range(400)], np.int32)
    prompt = np.full((3, 6), 5)
    for k, shapes, smallest in ((16, [(3, 1, 24), (3, 1, 36), (3, 1, 48)], 24), (300, [(3, 3, 192)], 192)):
        arguments = (prompts(prompt, prompt != PAD), jnp.asarray(answers), jnp.asarray(answers != PAD))
        seen.clear(), run.clear()
        rank(prefill, extend, model.image, *arguments, k=k)
        jax.effects_barrier()
        assert seen[0] == ("prompt", (3, 6))
        assert [shape for _, shape in seen[1 : 1 + len(shapes)]] == shapes
        assert set(run) == {smallest}


def test_answers_of_every_length_and_beginning_equal_the_definition(toy):
    """As many candidates as are read in several trees, and as few nodes as fit each of the sizes."""
    rng = np.random.default_rng(0)
    for longest, words in ((6, 3), (3, 9), (6, 9)):
        answers = rng.integers(3, 3 + words, size=(150, longest)).astype(np.int32)
        for row, end in enumerate(rng.integers(1, longest + 1, size=150)):
            answers[row, end:] = PAD
        model, prompt = toy.random(1), np.array([[4, 5, 6], [4, PAD, PAD], [PAD, PAD, 6]])
        best, candidates, scores = model.run(rank, prompt, answers, k=140)
        for row in range(3):
            _, order, expected = slow_rank(model, row, prompt[row].tolist(), answers, 140, 0.1)
            assert sorted(candidates[row].tolist()) == sorted(order.tolist())
            by_answer = dict(zip(order.tolist(), expected, strict=True))
            np.testing.assert_allclose(scores[row], [by_answer[i] for i in candidates[row].tolist()], rtol=1e-5)
            assert by_answer[int(best[row])] == pytest.approx(max(expected), rel=1e-5)
