"""BLIP-2: any causal language model behind the queries, the losses, bad input; golden cases are in tools.parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prismer_jax import decode, models, tree
from prismer_jax.batch import prompts
from prismer_jax.decode import lengths
from prismer_jax.errors import UserError
from prismer_jax.models.blip2 import FREEZE, losses
from prismer_jax.models.blip2.split import tensor_rules
from prismer_jax.optim import merge, split

LLAMA = dict(tower="llama", width=24, layers=1, heads=4, kv_heads=2, mlp_dim=48, vocab_size=50)


def batch_of(rows, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(3, 50, (rows, 5)).astype(np.int32)
    batch = {"image": rng.integers(0, 256, (rows, 42, 42, 3), np.uint8), **prompts(text, text > 0)}
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def stage1():
    model = models.build("blip2", variant="tiny_stage1")
    return model, jax.jit(model.init_variables)(jax.random.key(0))


def test_every_rule_of_the_axis_tensor_matches_something_of_stage_1():
    model, variables = stage1()
    patterns = [pattern for pattern, _ in tensor_rules(model)]
    places = tree.first_match(patterns, tree.flatten(variables["params"]), "tensor rules")
    assert {*places.values()} == {*range(len(patterns))}


def test_a_llama_in_the_language_models_place_writes_what_it_scores():
    model = models.build("blip2", variant="tiny", language=LLAMA)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    batch = batch_of(2)
    settings = dict(eos=-1, pad=0, method="beam", num_beams=3, max_new=4, length="new")
    tokens, scores = decode.generate(model, variables, batch, **settings)
    whole = np.concatenate([batch["text"], tokens[:, 0]], axis=1)
    read = jax.jit(functools.partial(model.apply, method="predictions"))
    log_probs = jax.nn.log_softmax(read(variables, {**batch, **prompts(whole, whole > -1)}))
    sums = jnp.take_along_axis(log_probs, whole[..., None], axis=2)[:, 5:].sum((1, 2))
    np.testing.assert_allclose(scores[:, 0], sums / 4, rtol=1e-4)


def test_a_llama_reads_beyond_its_positions_as_transformers_does():
    near, far = (models.build("blip2", variant="tiny", language=LLAMA | dict(max_positions=n)) for n in (6, 64))
    variables = jax.jit(far.init_variables)(jax.random.key(0))
    logits = [jax.jit(model.apply)(variables, batch_of(2)) for model in (near, far)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_stage_1_trains_all_but_the_vision_transformer_also_with_one_example(rows):
    model, variables = stage1()
    trained, frozen = split(variables["params"], FREEZE["freeze_vision"])
    rngs = {"negatives": jax.random.key(1)}

    def loss(trained):
        forward = functools.partial(model.apply, {"params": merge(trained, frozen)}, rngs=rngs)
        costs = losses.stage1(forward, batch_of(rows))
        return costs["loss"][0].sum(), costs

    (_, costs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert rows == 1 or all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads))
    assert costs["itm_accuracy"][1].sum() == (3 * rows if rows > 1 else 1)


def test_rows_that_fill_a_batch_up_change_no_loss_of_stage_1():
    model, variables = stage1()
    batch = {**batch_of(3), "image_id": jnp.arange(3), "_mask": jnp.ones(3, bool)}
    batch["mask_input"] &= jnp.arange(5) < jnp.array([[5], [3], [4]])
    filled = jax.tree.map(lambda x: jnp.concatenate([x, x[:1], x[:1]]), batch)
    for key, x in batch_of(5, seed=1).items():  # whatever they hold
        filled[key] = filled[key].at[4].set(x[4])
    filled |= {"image_id": jnp.array([0, 1, 2, 0, 4]), "_mask": jnp.arange(5) < 3}
    costs = jax.jit(lambda batch: losses.stage1(functools.partial(model.apply, variables), batch))
    alone, among = costs(batch), costs(filled)
    assert alone.keys() == among.keys()
    for name, (cost, weight) in alone.items():
        np.testing.assert_allclose(among[name][0], [*cost, 0, 0], rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(among[name][1], [*weight, 0, 0], err_msg=name)


@pytest.mark.slow
def test_matching_alone_fits_eight_photos_with_their_texts():
    """From scratch: a loss of 0.64, that of no to everything, would mean that queries see photo or text alone."""
    model, variables = stage1()
    batch, other, yes = batch_of(8), jnp.roll(jnp.arange(8), 1), jnp.repeat(jnp.array([1, 0, 0]), 8)

    def match(model):
        tokens, text, real = model.image_tokens(batch), batch["text"], batch["mask_input"]
        texts, reals = (jnp.concatenate([x, x, x[other]])[:, None] for x in (text, real))
        return model.matched(texts, reals, jnp.concatenate([tokens, tokens[other], tokens]))[1].mean((1, 2))

    tx = optax.adam(1e-3)

    @jax.jit
    def fit(params):
        def loss(params):
            scores = model.apply({"params": params}, method=match)
            return optax.softmax_cross_entropy_with_integer_labels(scores, yes).mean()

        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=150)[1]

    losses = fit(variables["params"])
    assert losses[0] > 0.6
    assert losses.min() < 0.3


@pytest.mark.slow
def test_a_text_is_written_behind_dec_whatever_its_first_token_is():
    model, variables = stage1()
    batch = batch_of(2)

    @jax.jit
    def write(text):
        keys = model.apply(variables, batch, method="encode")
        return model.apply(variables, keys, {**batch, "text": text}, 2, method="prefill")[0]

    text = jnp.asarray(batch["text"])
    np.testing.assert_array_equal(write(text), write(text.at[:, 0].set(model.begin)))
    assert not np.array_equal(write(text), write(text.at[:, 1].set(model.begin)))


def test_negatives_are_of_other_images():
    model, variables = stage1()
    others, alike = np.not_equal.outer([3, 3, 5, 5], [3, 3, 5, 5]), jnp.zeros((4, 4))

    def draw(seed):
        return model.apply(variables, alike, alike, others, method="drawn", rngs={"negatives": jax.random.key(seed)})

    drawn = [draw(seed) for seed in range(8)]
    assert all((np.asarray(part)[:2] > 1).all() and (np.asarray(part)[2:] < 2).all() for one in drawn for part in one)
    assert len({tuple(np.asarray(one.image)) for one in drawn}) > 1


def test_lengths_count_what_their_transformers_counted():
    assert lengths.settled("new", 4, 30, 8, "beam") == dict(
        max_new=30, min_new=8, prompt_length=0, ahead=1, counts_end=True
    )
    assert lengths.settled("lavis", 4, 30, 8, "beam") == dict(max_new=29, min_new=7, prompt_length=1, ahead=1)
    assert lengths.settled("lavis_4.26", 4, 30, 8, "beam") == dict(max_new=30, min_new=4, prompt_length=4)
    assert lengths.settled("lavis", 4, 30, 8, "greedy") == dict(max_new=29, min_new=7)
    with pytest.raises(UserError, match="lavis"):
        lengths.settled("lavi", 4, 30, 8, "beam")


def test_what_was_said_is_penalised():
    prompt = {"text": jnp.array([[0, 5, 6]]), "mask_input": jnp.array([[False, True, True]])}
    after = lengths.penalized(jnp.full((1, 1, 8), -1.0), prompt, 1, jnp.array([[[7, 3]]]), 1, 1.5)
    assert np.flatnonzero(after[0, 0] < -1).tolist() == [5, 7]


@pytest.mark.parametrize(
    ("name", "said"), [("new", [5, 6, 7]), ("lavis", [5, 7]), ("start", [1, 7]), ("new_start", [1, 7])]
)
def test_today_the_whole_prompt_was_said_of_t5_its_start(name, said):
    prompt = {"text": jnp.array([[0, 5, 6]]), "mask_input": jnp.array([[False, True, True]])}
    rule = lengths.settled(name, 3, 9, 0, "beam")
    count = None if rule.get("counts_end") else rule["prompt_length"]
    before = lengths.said_before(prompt, 1 if rule.get("starts") else None, count)
    after = lengths.penalized(jnp.full((1, 1, 8), -1.0), *before, jnp.array([[[7, 3]]]), 1, 1.5)
    assert np.flatnonzero(after[0, 0] < -1).tolist() == said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(variant="pretrained_opt2.8b"), "pretrained_opt2.7b"),
        (dict(variant="tiny", language=dict(tower="bert")), "language.tower"),
        (dict(variant="tiny", qformer=dict(vocab_size=9)), "reads no text"),
        (dict(variant="tiny", vision=dict(image_size=0)), "image_size 0 is not a multiple of 14; both must be above 0"),
        (dict(variant="tiny", vision=dict(image_size=-28)), "vision.image_size -28 is not"),
        (dict(variant="tiny", vision=dict(patch_size=0)), "is not a multiple of 0; both"),
        (dict(variant="tiny_stage1", qformer=dict(layers=3)), "not a multiple of 2"),
        (dict(variant="tiny_stage1", language=dict(width=3)), "language.tower"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        models.build("blip2", **fields)
    assert "\n" not in str(error.value)
