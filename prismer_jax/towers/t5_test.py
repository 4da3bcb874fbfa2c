"""T5 alone: the language model of the golden case blip2_t5_tiny, given what stands there in front of the text."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.decode.beam import beam_search
from prismer_jax.towers.t5 import T5, bucket_table
from prismer_jax.weights import modules, rules
from tools.parity.case import Case

TABLE = rules.Table(tuple(modules.t5("t5_model.", "language")))


def forward(model, x, real, ids):
    """The encoder's states, and the logits behind each of the ids [b t] that the decoder reads."""
    states, columns = model.encode(x, real), ids.shape[1]
    masks = {"encoded": real[:, None, None], "new": jnp.tri(columns, dtype=bool)}
    hidden, _ = model.decode(ids[:, None], masks, {"new": jnp.arange(columns)}, states)
    return states, model.logits(hidden[:, 0])


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/blip2_t5_tiny"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    case = Case(folder)
    sizes = case.config["t5"]
    model = T5(
        width=sizes["d_model"],
        layers=sizes["num_layers"],
        decoder_layers=sizes["num_decoder_layers"],
        heads=sizes["num_heads"],
        head_dim=sizes["d_kv"],
        mlp_dim=sizes["d_ff"],
        vocab_size=sizes["vocab_size"],
    )
    queries, ids = jnp.asarray(case.arrays["out/projected"]), jnp.zeros((4, 2), jnp.int32)
    init = functools.partial(model.init, method=forward)
    shapes = jax.eval_shape(init, jax.random.key(0), queries, jnp.ones((4, 8), bool), ids)
    shapes = tree.flatten({"params": {"language": shapes["params"]}})
    state = {key: array for key, array in case.state().items() if key.startswith("t5_model.")}
    flat = {name: make() for name, make in rules.from_torch(state, TABLE, shapes).items()}
    params = tree.unflatten({name: jnp.asarray(array) for name, array in flat.items()})["params"]["language"]
    apply = functools.partial(model.apply, {"params": params})
    return types.SimpleNamespace(case=case, state=state, flat=flat, shapes=shapes, apply=apply, queries=queries)


def read(golden, ids, mask):
    """What the encoder reads: the queries and the words of these ids."""
    words = golden.apply(jnp.asarray(ids), method="embed")
    real = jnp.concatenate([jnp.ones(golden.queries.shape[:2], bool), jnp.asarray(mask) > 0], axis=1)
    return jnp.concatenate([golden.queries, words], axis=1), real


@pytest.mark.parametrize(("name", "both_sides"), [("encoder", True), ("decoder", False)])
def test_distances_fall_into_the_references_buckets(golden, name, both_sides):
    stored = golden.case.arrays[f"tap/rel_bucket_{name}[-200..200]"]
    np.testing.assert_array_equal(np.pad(bucket_table(both_sides), 72, mode="edge"), stored)


def test_weights_convert_both_ways_and_words_may_stand_under_one_key(golden):
    back = rules.to_torch(golden.flat, TABLE)
    assert back.keys() == golden.state.keys()
    assert all(np.array_equal(back[key], array) for key, array in golden.state.items())
    embedding = "language/word_embedding"
    for stack in ("encoder", "decoder"):
        lone = {key: array for key, array in golden.state.items() if "shared" not in key and "embed_tokens" not in key}
        lone[f"t5_model.{stack}.embed_tokens.weight"] = golden.state["t5_model.shared.weight"]
        words = rules.from_torch(lone, TABLE, golden.shapes)[f"params/{embedding}"]()
        np.testing.assert_array_equal(words, golden.state["t5_model.shared.weight"])


def test_texts_and_their_likelihoods_are_the_references(golden):
    arrays = golden.case.arrays
    x, real = read(golden, arrays["int/train_input_ids"], arrays["int/train_input_mask"])
    labels, mask = arrays["int/train_output_ids"], arrays["int/train_output_mask"] > 0
    states, logits = jax.jit(functools.partial(golden.apply, method=forward))(
        x, real, np.pad(labels, ((0, 0), (1, 0)))[:, :-1]
    )
    np.testing.assert_allclose(states, arrays["tap/t5_encoder_out"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits[mask], arrays["out/logits"][mask], rtol=1e-4, atol=1e-4)
    gains = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    assert -gains[mask].mean() == pytest.approx(float(arrays["out/loss"]), rel=1e-5)


def test_beams_write_what_the_references_do_whatever_lies_between_queries_and_text(golden):
    """Also with pads there: what counts is the distance that positions say."""
    arrays = golden.case.arrays
    prompt = np.repeat(arrays["int/prompt_ids"], 4, axis=0)
    x, real = read(golden, np.pad(prompt, ((0, 0), (3, 0))), np.pad(np.ones_like(prompt), ((0, 0), (3, 0))))
    assert not real.all()

    @jax.jit
    def write(x):
        states = golden.apply(x, real, jnp.cumsum(real, axis=1) - 1, method="encode")
        return beam_search(
            lambda states, _, room: golden.apply(states, real, 0, room, method="prefill"),
            functools.partial(golden.apply, method="extend"),
            states,
            {},
            eos=golden.case.config["t5"]["eos_token_id"],
            pad=0,
            max_new=30,
            num_beams=5,
            prompt_length=1,
        )

    tokens, scores = write(x)
    np.testing.assert_array_equal(tokens[:, 0], arrays["out/beam_ids"][:, 1:])
    np.testing.assert_allclose(scores[:, 0], arrays["out/beam_scores"], rtol=1e-5)


@pytest.mark.slow
def test_texts_written_token_by_token_have_the_likelihoods_of_the_whole(golden):
    """In steps of several tokens, and for several texts of a row, too."""
    x, real = golden.queries, jnp.ones((4, 8), bool)
    ids = np.random.default_rng(0).integers(0, 96, (4, 2, 9))

    @jax.jit
    def whole(ids):
        return golden.apply(x, real, jnp.pad(ids, ((0, 0), (1, 0))), method=forward)[1]

    @jax.jit
    def steps(ids):
        first, cache = golden.apply(golden.apply(x, real, method="encode"), real, 0, 9, method="prefill")
        cache["own"] = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=2), cache["own"])
        parts = [jnp.broadcast_to(first[:, None], (4, 2, *first.shape[1:]))]
        for start, end in ((0, 1), (1, 5), (5, 9)):
            logits, cache = golden.apply(cache, ids[:, :, start:end], method="extend")
            parts.append(logits)
        return jnp.concatenate(parts, axis=2)

    expected = np.stack([whole(ids[:, text]) for text in range(2)], axis=1)
    np.testing.assert_allclose(steps(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # XLA takes its time over dropout
def test_logits_of_a_bfloat16_model_are_float32_and_dropout_needs_a_stream():
    model = T5(8, 1, 1, heads=3, head_dim=4, mlp_dim=8, vocab_size=11, dropout=0.5, dtype=jnp.bfloat16)
    inputs = jnp.ones((1, 2, 8), jnp.bfloat16), jnp.ones((1, 2), bool), jnp.zeros((1, 2), jnp.int32)

    @jax.jit
    def run(seed):
        params = model.init(jax.random.key(0), *inputs, method=forward)
        apply = functools.partial(model.apply, params, *inputs, method=forward)
        return apply(), apply(rngs={"dropout": jax.random.key(seed)}), apply(rngs={"dropout": jax.random.key(seed + 1)})

    (states, logits), (_, one), (_, other) = run(0)
    assert (states.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert len({tuple(np.ravel(x)) for x in (logits, one, other)}) == 3
