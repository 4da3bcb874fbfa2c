"""PaliGemma: what sees what, texts that do not depend on their neighbours, both caps, all sizes; golden cases are in
tools.parity."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from prismer_jax import decode, losses, models
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.paligemma import FREEZE, VARIANTS, build
from prismer_jax.optim import merge, split
from prismer_jax.towers.causal_lm import windowed

SMALL = dict(logit_cap=0.5, attention_cap=5.0, post_norms=True)


@functools.cache
def tiny(**fields):
    model = build("tiny", **fields)
    return model, jax.jit(model.init_variables)(jax.random.key(0))


def batch_of(lengths, total, seed=0):
    """Returns prompts of these lengths, padded on the left to `total` columns, and images."""
    rng = np.random.default_rng(seed)
    real = np.arange(total) >= total - np.asarray(lengths)[:, None]
    text = np.where(real, rng.integers(3, 300, real.shape), 0).astype(np.int32)
    zeros = np.zeros_like(text)
    image = rng.integers(0, 256, (len(lengths), 56, 56, 3)).astype(np.uint8)
    return dict(image=image, text=text, mask_input=real, mask_ar=zeros, segment=zeros)


def test_image_and_prefix_see_each_other_and_a_suffix_what_is_before_it():
    model, variables = tiny()
    batch = batch_of([6], 6) | {"mask_ar": np.array([[0, 0, 0, 1, 1, 1]], np.int32)}
    seen = model.apply(variables, batch, method=lambda m, b: m.columns(m.encode(b), b).seen)[0]
    assert seen[:, :19].all()
    assert not seen[:19, 19:].any()
    assert (seen[19:, 19:] == np.tri(3, dtype=bool)).all()


def test_a_text_depends_neither_on_its_neighbours_nor_on_padding():
    model, variables = tiny()
    both = batch_of([3, 6], 8)
    one = {key: value[:1, -3:] if key != "image" else value[:1] for key, value in both.items()}
    run = functools.partial(decode.generate, model, variables, eos=1, pad=0, method="greedy", max_new=6)
    np.testing.assert_array_equal(run(both)[0][:1], run(one)[0])


def test_a_window_hides_what_is_far_in_every_second_layer_but_not_what_sees_each_other():
    mask = np.tri(6, dtype=bool)
    mask[:3, :3] = True  # a prompt
    near, far = windowed(mask, np.arange(6)[:, None] - np.arange(6), 2, mutual=True)
    np.testing.assert_array_equal(far, mask)
    np.testing.assert_array_equal(near[:3], mask[:3])
    np.testing.assert_array_equal(near[3:].nonzero()[1], [2, 3, 3, 4, 4, 5])


@pytest.mark.parametrize("window", [0, 3, 100])
def test_what_is_generated_has_the_scores_that_the_whole_text_has(window):
    model, variables = build("tiny", cap="always", language=dict(window=window)), tiny(cap="always")[1]
    batch, plain = batch_of([4, 5], 5), tiny(cap="always")[0]
    tokens = decode.generate(model, variables, batch, eos=-1, pad=0, method="greedy", max_new=4)[0][:, 0]
    ones = np.ones((2, 4), np.int32)
    behind = {"text": tokens, "mask_input": ones > 0, "mask_ar": ones, "segment": 0 * ones}
    grown = batch | {key: np.concatenate([batch[key], part], axis=1) for key, part in behind.items()}
    logits = model.apply(variables, grown)
    np.testing.assert_array_equal(logits[:, 4:-1].argmax(-1), tokens)
    assert np.allclose(logits, plain.apply(variables, grown), atol=1e-6) == (window != 3)


@pytest.mark.parametrize("cap", ["reference", "always"])
def test_the_cap_holds_for_words_after_the_first(cap):
    model, _ = tiny()
    model = build("tiny", cap=cap, language=SMALL)
    variables = jax.tree.map(lambda x: 20 * x, jax.jit(model.init_variables)(jax.random.key(0)))
    batch = batch_of([4], 4)
    encoded = model.apply(variables, batch, method="encode")
    first, cache = model.apply(variables, encoded, batch, 2, method="prefill")
    second, _ = model.apply(variables, cache, jnp.ones((1, 1, 1), jnp.int32), method="extend")
    assert np.abs(second).max() <= 0.5
    assert (np.abs(first).max() <= 0.5) == (cap == "always")


def test_every_size_is_built_without_memory():
    number = {}
    for variant in VARIANTS:
        model = build(variant)
        number[variant] = sum(int(np.prod(leaf.shape)) for leaf in conversion.shapes_of(model).values())
    assert number["pt_224"] == 2_923_335_408
    assert number["28b_pt_896"] == 27_654_615_792


def test_the_t4_recipe_trains_attention_alone():
    shapes = jax.eval_shape(build("pt_224").init_variables, jax.random.key(0))["params"]
    trained, _ = split(shapes, FREEZE["attention_only"])
    assert sum(int(np.prod(leaf.shape)) for leaf in trained.values()) == 169_869_312  # as big_vision's notebook counts


def test_experts_say_nothing_before_they_are_trained():
    plain, variables = tiny()
    model = build("tiny", experts="depth", stem_width=8)
    own = jax.jit(model.init_variables)(jax.random.key(1))
    own = {**own, "params": {**own["params"], **variables["params"]}}
    batch = batch_of([4], 4) | {"labels/depth": np.full((1, 16, 16, 1), 9, np.uint8)}
    np.testing.assert_array_equal(model.apply(own, batch), plain.apply(variables, batch))


@pytest.mark.parametrize(
    ("chunk", "cap"),
    [
        (5, "reference"),
        (5, "always"),
        *(pytest.param(chunk, cap, marks=pytest.mark.slow) for chunk in (2, 100) for cap in ("reference", "always")),
    ],
)
def test_logits_in_chunks_make_the_same_loss_and_gradients(chunk, cap):
    model = build("tiny", cap=cap, language=SMALL)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    weights = np.random.default_rng(2).uniform(0, 1, (2, 12)).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, batch_of([3, 12], 12) | {"mask_loss": weights})

    def loss(params, chunk):
        forward = functools.partial(model.apply, {"params": params})
        costs, weights = losses.cross_entropy(forward, batch, 0.1, "example", chunk)["loss"]
        return costs.sum() / weights.sum()

    whole, parts = (
        jax.jit(jax.value_and_grad(functools.partial(loss, chunk=n)))(variables["params"]) for n in (0, chunk)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, parts, whole)


def test_the_factor_of_an_examples_cost_is_not_rounded_to_bfloat16():
    model = build("tiny", dtype="bfloat16")
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch_of([64] * 8, 64) | {"mask_loss": np.ones((8, 64), np.float32)})

    @jax.jit
    @jax.grad
    def gradient(params, factor):
        costs = model.apply({"params": params}, batch, 0.0, 63, method="text_costs")
        return (factor * costs).sum()

    whole, part = (ravel_pytree(gradient(variables["params"], factor))[0] for factor in (1.0, 1 / 3))
    assert whole @ part / (whole @ whole) == pytest.approx(1 / 3, rel=5e-4)  # of bfloat16, 1/3 is 0.2 % more


def test_logits_in_chunks_are_never_whole():
    model = build("tiny", language=dict(vocab_size=20_000))
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch_of([64] * 2, 64) | {"mask_loss": np.ones((2, 64), np.float32)})

    def loss(params, chunk):
        forward = functools.partial(model.apply, {"params": params})
        return losses.cross_entropy(forward, batch, 0.1, "example", chunk)["loss"][0].sum()

    def temporaries(chunk):
        step = jax.jit(jax.grad(loss), static_argnums=1)
        return step.lower(variables["params"], chunk).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.6 * temporaries(0)


def test_logits_in_chunks_are_computed_once_unless_the_words_are_trained():
    vocab = 1000
    model = build("tiny", language=dict(vocab_size=vocab))
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch_of([8] * 2, 8) | {"mask_loss": np.ones((2, 8), np.float32)})

    def loss(trained, fixed):
        forward = functools.partial(model.apply, {"params": merge(trained, fixed)})
        return losses.cross_entropy(forward, batch, 0.1, "example", 7)["loss"][0].sum()

    def products(words):
        frozen = () if words else ("language/word_embedding",)
        trained, fixed = split(variables["params"], frozen)
        text = jax.jit(jax.grad(loss)).lower(trained, fixed).as_text()
        return sum(f"x{vocab}x" in line or f"<{vocab}x" in line for line in re.findall(".*dot_general.*", text))

    assert [products(words=False), products(words=True)] == [2, 4]


def test_training_and_big_visions_beams_work_through_the_family():
    model = models.build("paligemma", variant="tiny")
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch_of([5, 5], 5) | {"mask_loss": np.ones((2, 5), np.float32)})

    def loss(params):
        return losses.cross_entropy(functools.partial(model.apply, {"params": params}), batch)["loss"][0].sum()

    grads = jax.grad(loss)(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    tokens, scores = decode.generate(
        model, variables, batch, eos=7, pad=0, method="big_vision_beam", num_beams=2, max_new=5
    )
    assert (tokens == 7).any(-1).all()
    assert np.isfinite(scores).all()


def test_forbidden_words_are_never_said():
    model, variables = tiny()
    run = functools.partial(
        decode.generate, model, variables, batch_of([4], 4), eos=-1, pad=0, method="greedy", max_new=5
    )
    words = np.unique(run()[0])
    assert not np.isin(run(forbidden=words.tolist())[0], words).any()


def test_the_best_samples_come_first():
    model, variables = tiny()
    run = functools.partial(
        decode.generate, model, variables, batch_of([4], 4), eos=1, pad=0, method="sample", max_new=5, num_samples=6
    )
    scores = np.asarray(run(rng=jax.random.key(0))[1][0])
    best = np.asarray(run(rng=jax.random.key(0), num_return=2)[1][0])
    np.testing.assert_array_equal(best, np.sort(scores)[::-1][:2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(variant="pt_225"), "pt_224"),
        (dict(variant="tiny", vision=dict(image_size=60)), "not a multiple of 14"),
        (dict(variant="tiny", vision=dict(image_size=0)), "image_size 0 is not a multiple of 14; both must be above 0"),
        (dict(variant="tiny", vision=dict(image_size=-28)), "vision.image_size -28 is not"),
        (dict(variant="tiny", vision=dict(patch_size=0)), "is not a multiple of 0; both"),
        (dict(variant="tiny", cap="never"), "never"),
        (dict(variant="tiny", language=dict(widht=3)), "width"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        build(**fields)
    assert "\n" not in str(error.value)
