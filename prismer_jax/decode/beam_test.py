"""Beam search against a slow one in plain Python, written from the rules of transformers 4.26.1 one by one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.batch import prompts
from prismer_jax.decode import lengths
from prismer_jax.decode.batch import check
from prismer_jax.decode.beam import _Pool, beam_search
from prismer_jax.decode.greedy import greedy
from prismer_jax.errors import UserError

PAD, EOS = 1, 2


def slow_beam_search(log_probs_after, prompt, *, num_beams, max_len, min_len, length_penalty, early_stopping):
    """One image. Returns the ended sequences, best first, as (score, tokens without eos)."""
    beams = [(0.0 if i == 0 else -1e9, list(prompt)) for i in range(num_beams)]
    ended = []  # in the order of entry

    def offer(total, tokens):
        score = total / len(tokens) ** length_penalty
        if len(ended) < num_beams:
            ended.append((score, tokens))
        elif score > min(s for s, _ in ended):
            ended.append((score, tokens))
            ended.remove(min(ended, key=lambda x: x[0]))  # the first of equals

    for length in range(len(prompt), max_len):
        candidates = []
        for index, (total, tokens) in enumerate(beams):
            gains = np.array(log_probs_after(tokens))
            if length < min_len:
                gains[EOS] = -np.inf
            candidates += [(-(total + gain), index, token) for token, gain in enumerate(gains)]
        candidates = sorted(candidates)[: 2 * num_beams]
        opened = []
        for place, (loss, index, token) in enumerate(candidates):
            if token != EOS:
                opened.append((-loss, [*beams[index][1], token]))
            elif place < num_beams:
                offer(-loss, beams[index][1])
            if len(opened) == num_beams:
                break
        beams = opened
        if len(ended) == num_beams:
            worst, best_possible = min(s for s, _ in ended), -candidates[0][0] / length**length_penalty
            if early_stopping or worst >= best_possible:
                break
    else:
        for total, tokens in beams:
            offer(total, tokens)
    order = sorted(range(num_beams), key=lambda i: (ended[i][0], i), reverse=True)  # the last of equals first
    return [ended[i] for i in order]


def slow_search_of_today(
    log_probs_after, prompt, *, num_beams, max_new, min_new, length_penalty, early_stopping, repetition_penalty
):
    """The same by the rules of transformers 5.24.0 (generation/utils.py): what is open alone says whether it goes on.

    All that a text may have is ended by its last column, that of a search which ends there, too. What a prompt says was
    said before.
    """
    beams, ended = [(0.0 if i == 0 else -1e9, ()) for i in range(num_beams)], []
    for length in range(1, max_new + 1):
        candidates = []
        for index, (total, tokens) in enumerate(beams):
            gains = np.array(log_probs_after([*prompt, *tokens]))
            gains[list({*prompt, *tokens})] *= repetition_penalty
            if length <= min_new:
                gains[EOS] = -np.inf
            candidates += [(-(total + gain), index, token) for token, gain in enumerate(gains)]
        best = [(-loss, (*beams[index][1], token)) for loss, index, token in sorted(candidates)[: 2 * num_beams]]
        stops = [tokens[-1] == EOS or length == max_new for _, tokens in best]
        here = [(total / length**length_penalty, tokens) for total, tokens in best[:num_beams]]
        ended += [text for text, stop in zip(here, stops, strict=False) if stop]
        ended = sorted(ended, key=lambda text: -text[0])[:num_beams]
        beams = [text for text, stop in zip(best, stops, strict=True) if not stop][:num_beams]
        full, best_possible = len(ended) == num_beams, beams[0][0] / length**length_penalty if beams else -np.inf
        if full and (early_stopping or best_possible <= ended[-1][0]):
            break
    return ended


def finished(tokens, max_len):
    return [*tokens, *([EOS] if len(tokens) < max_len else []), *[PAD] * max_len][:max_len]


SETTINGS = [
    dict(num_beams=k, length_penalty=p, early_stopping=stop, min_len=low, max_len=high, num_return=n)
    for (p, stop), (k, n, low, high) in zip(
        itertools.product([1.0, 0.0, -1.0, 2.0], [False, True]),
        [
            (3, 1, 0, 12),
            (3, 3, 7, 12),
            (2, 2, 6, 9),
            (4, 2, 0, 20),
            (3, 3, 0, 12),
            (1, 1, 5, 10),
            (5, 5, 8, 9),
            (3, 2, 0, 5),
        ],
        strict=True,
    )
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{v:g}" for v in s.values()))
def test_equals_the_slow_search_on_random_models(toy, settings):
    rng = np.random.default_rng(0)
    ends = set()
    for seed in range(12):
        model = toy.random(seed, sharpness=rng.choice([0.1, 0.4, 1.0]), eos=rng.choice([0.0, 1.0, 3.0]))
        prompt = rng.integers(3, 12, size=(3, 4))
        prompt[1, 3:] = prompt[2, :2] = PAD  # a prompt padded on the right, one padded on the left
        tokens, scores = model.run(beam_search, prompt, **settings)
        rules = {name: value for name, value in settings.items() if name != "num_return"}
        for row in range(3):
            after = functools.partial(model.log_probs, row, width=4)
            expected = slow_beam_search(after, prompt[row].tolist(), **rules)[: settings["num_return"]]
            assert tokens[row].tolist() == [finished(t, settings["max_len"]) for _, t in expected]
            np.testing.assert_allclose(scores[row], [s for s, _ in expected], rtol=1e-5, atol=1e-5)
            ends |= {len(t) for _, t in expected}
    assert len(ends) > 1 or settings["max_len"] == 5  # the cases are no monoculture


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize(
    ("length_penalty", "repetition"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, 1.5)]
)
def test_lengths_that_are_new_end_as_transformers_ends_today(toy, length_penalty, repetition, early_stopping):
    rng, others = np.random.default_rng(0), 0
    settings = dict(num_beams=4, length_penalty=length_penalty, early_stopping=early_stopping)
    settings |= dict(repetition_penalty=repetition)
    rules = lengths.settled("new", 2, 6, 2, "beam")
    for seed in range(30):
        model = toy.random(seed, vocab=7, sharpness=rng.choice([0.1, 0.4, 1.0]), eos=rng.choice([0.0, 1.0, 3.0]))
        prompt = rng.integers(3, 7, size=(3, 2))
        own = dict(num_return=4, eos=EOS, pad=PAD, **settings)
        tokens, scores = model.run(beam_search, prompt, **own, **rules)
        before, _ = model.run(beam_search, prompt, **own, **rules | dict(counts_end=False))
        for row in range(3):
            after = functools.partial(model.log_probs, row, width=2)
            expected = slow_search_of_today(after, prompt[row].tolist(), max_new=6, min_new=2, **settings)
            assert tokens[row].tolist() == [[*text, *[PAD] * 6][:6] for _, text in expected]
            np.testing.assert_allclose(scores[row], [score for score, _ in expected], rtol=1e-5, atol=1e-5)
        others += bool((before != tokens).any())
    # The rules of 4.26.1 find others, but where a longer text cannot score better.
    assert others or (length_penalty == 0 and not early_stopping)


def test_the_pool_of_ended_sequences_breaks_ties_as_a_list_does():
    rng = np.random.default_rng(0)
    slots, rounds, images = 3, 4, 200
    scores = rng.integers(0, 4, size=(rounds, images, slots)).astype(np.float32)
    valid = rng.random((rounds, images, slots)) < 0.6
    names = np.arange(rounds * slots).reshape(rounds, 1, slots, 1) + np.zeros((1, images, 1, 1), int)
    empty = jnp.full((images, slots), -1)
    pool = _Pool(jnp.zeros((images, slots, 1), int), jnp.full((images, slots), -jnp.inf), empty)
    for time in range(rounds):
        pool = pool.add(names[time], scores[time], valid[time], time)
    for image in range(images):
        kept = []
        for time, j in itertools.product(range(rounds), range(slots)):
            score = scores[time, image, j]
            if valid[time, image, j] and (len(kept) < slots or score > min(kept)[0]):
                kept.append((score, int(names[time, image, j, 0])))
                if len(kept) > slots:
                    kept.remove(min(kept))
        has = np.asarray(pool.born[image]) >= 0
        assert sorted(np.asarray(pool.tokens[image, :, 0])[has].tolist()) == sorted(name for _, name in kept)


def test_one_beam_is_greedy_decoding(toy):
    for seed in range(10):
        model = toy.random(seed, eos=1.0)
        prompt = np.full((3, 2), 5)
        beam, scores = model.run(beam_search, prompt, num_beams=1, max_len=9, min_len=4, length_penalty=0)
        tokens, sums = model.run(greedy, prompt, max_len=9, min_len=4)
        assert (beam == tokens).all()
        np.testing.assert_allclose(scores, sums, rtol=1e-5)


def test_equal_continuations_are_taken_in_the_order_of_their_ids(toy):
    model = toy.random(0, sharpness=0.0)  # every token is as likely as any other
    tokens, _ = model.run(beam_search, np.full((3, 1), 5), num_beams=3, num_return=3, max_len=3, min_len=3)
    # Ids 0, 1, 3 (2 is eos, and forbidden); then beam 0 has all three best. Of equal sequences the last comes first.
    assert tokens[0].tolist() == [[5, 0, 3], [5, 0, 1], [5, 0, 0]]


def test_an_image_does_not_depend_on_its_batch(toy):
    model = toy.random(3, eos=1.0)
    prompt = np.array([[4, 5], [6, 7], [8, 9]])
    tokens, scores = model.run(beam_search, prompt, max_len=12)
    for row in range(3):
        one = model._replace(image=model.image[row : row + 1])
        alone, score = one.run(beam_search, prompt[row : row + 1], max_len=12)
        assert (alone == tokens[row]).all()
        np.testing.assert_allclose(score[0], scores[row], rtol=1e-6)


def test_a_step_is_traced_once_and_the_loop_ends_with_the_last_image(toy):
    model, traced, ran = toy.random(0, eos=9.0), [], []

    def extend(cache, tokens):
        traced.append(tokens.shape)
        jax.debug.callback(lambda: ran.append(1))
        return model.extend(cache, tokens)

    @jax.jit
    def search(prompt):
        settings = dict(max_new=58, num_return=3, early_stopping=True, eos=EOS, pad=PAD)
        return beam_search(model.prefill, extend, model.image, prompts(prompt, prompt != PAD), **settings)

    for start in (4, 5):
        ran.clear()
        tokens, _ = search(jnp.full((3, 2), start))
        jax.effects_barrier()
        longest = int((tokens != PAD).sum(-1).max())  # the last to end: with early stopping nothing follows it
        assert len(ran) == longest - 1 < 20  # the first token comes without a call
    assert traced == [(3, 3, 1)]


def test_impossible_settings_are_the_users_error(toy):
    with pytest.raises(UserError, match="max_new=0 leaves no token"):
        toy.random(0).run(beam_search, np.full((3, 4), 5), max_len=4)
    for settings in (dict(num_return=4), dict(num_return=0), dict(num_beams=1, num_return=2)):  # of 3 beams by default
        with pytest.raises(UserError, match=r"num_return=.: must be from 1 to num_beams="):
            check({"max_new": 5, **settings}, "config.tasks.caption.decode")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have no TopK to be called")
def test_no_row_of_the_vocabulary_is_sorted(toy):
    model, prompt = toy.random(0, vocab=5003), np.full((3, 2), 5, np.int32)
    settings = dict(eos=EOS, pad=PAD, max_new=4, num_beams=3)
    search = functools.partial(beam_search, model.prefill, model.extend, model.image, **settings)
    program = jax.jit(search).lower(prompts(prompt, prompt != PAD)).compile().as_text()
    assert 'custom_call_target="TopK"' in program
    assert not [line for line in program.splitlines() if " sort(" in line and str(3 * 5003) in line]
