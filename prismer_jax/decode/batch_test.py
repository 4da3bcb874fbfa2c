"""Decoding of whole batches with a real model: equal to full forward passes, sharded or not, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prismer_jax import decode, models
from prismer_jax.batch import prompts
from prismer_jax.decode import ranking
from prismer_jax.decode.batch import _compiled, check
from prismer_jax.decode.cache import reorder
from prismer_jax.decode.padding import pad_as_reference
from prismer_jax.errors import UserError

PAD, EOS, BATCH, WIDTH = 1, 2, 8, 5


def generate(*args, **settings):
    return decode.generate(*args, eos=EOS, pad=PAD, **settings)


def rank_answers(model, variables, batch, answers, **settings):
    return ranking.rank_answers(model, variables, batch, answers, answers != PAD, **settings)


class ToyModel(nn.Module):
    """The toy as a module: what decoding asks of a model, and nothing that takes long to compile."""

    toy: type
    dtype: str = "float32"

    def setup(self):
        parts = self.toy.random(0, sharpness=0.5, eos=1.0)
        self.parts = {
            name: self.param(name, lambda rng, x=x: jnp.asarray(x))
            for name, x in parts._asdict().items()
            if name != "image"
        }
        self.look = self.param("look", nn.initializers.normal(0.1), (4, parts.words.shape[1]))

    def encode(self, batch):
        seen = jnp.concatenate([batch["image"].mean((1, 2)), batch["labels/depth"].mean((1, 2))], axis=-1)
        return (seen - 128) @ self.look

    def prefill(self, encoded, batch, room):
        return self._narrow(*self.toy(image=None, **self.parts).prefill(encoded, batch, room))

    def extend(self, cache, tokens, seen=None):
        return self._narrow(*self.toy(image=None, **self.parts).extend(cache, tokens, seen))

    def _narrow(self, logits, cache):
        return logits.astype(self.dtype), cache


@pytest.fixture(scope="module")
def small(toy):
    model = ToyModel(toy)
    batch = photos()
    return model, model.init(jax.random.key(0), {k: v for k, v in batch.items() if k != "meta"}, method="encode")


def real_model():
    """A PrismerZ with weights under which its logits depend on everything that they should depend on."""
    sizes = dict(width=32, layers=2, heads=2, mlp_dim=32, vocab_size=40, max_positions=20)
    fields = dict(image_size=32, width=32, heads=2, layers=1, decoder=sizes)
    model = models.build("prismer", variant="tiny", experts="none", **fields)
    rng = np.random.default_rng(0)

    def fill(path, shape):
        noise, leaf = rng.normal(size=shape.shape), path[-1].key
        if leaf.endswith(("scale", "bias")):
            return (leaf == "scale") + 0.1 * noise
        return noise * shape.shape[-2] ** -0.5

    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
    return model, {"params": jax.tree.map(jnp.float32, jax.tree.map_with_path(fill, shapes))}


def photos(seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(3, 12, size=(BATCH, WIDTH))
    text[:, 0] = 0
    text[1, 3:] = PAD  # padded on the right
    text[2] = [PAD, PAD, 0, 7, 8]  # and on the left
    return {
        "image": rng.integers(0, 256, size=(BATCH, 32, 32, 3), dtype=np.uint8),
        "labels/depth": rng.integers(0, 256, size=(BATCH, 32, 32, 1), dtype=np.uint8),
        **asked(text),
        "mask_loss": np.ones((BATCH, WIDTH), np.float32),
        "meta": [{"id": str(i)} for i in range(BATCH)],  # stays on the host
    }


def asked(text):
    """Returns the text keys of prompts of which PAD is padding."""
    return prompts(np.asarray(text, np.int32), np.asarray(text) != PAD)


def make_mesh(*shape):
    return jax.make_mesh(shape, ("data", "fsdp")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def place(batch, variables, mesh):
    """Puts the batch's rows on all devices, and the matrices' last axis on the last axis of the mesh."""
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    batch = {k: jax.device_put(v, rows) for k, v in batch.items() if k != "meta"}
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(None, mesh.axis_names[-1]), PartitionSpec()))

    def put(x):
        fits = x.ndim == 2 and x.shape[1] % mesh.devices.shape[-1] == 0
        return jax.device_put(x, split if fits else whole)

    return batch, jax.tree.map(put, variables)


def test_cached_decoding_equals_full_forward_passes():
    model, variables = real_model()
    more = jax.random.randint(jax.random.key(1), (BATCH, 2, 4), 2, 40)  # two sequences an image

    @jax.jit
    def both_ways(batch):
        encoded = model.apply(variables, batch, method="encode")
        first, cache = model.apply(variables, encoded, batch, 4, method="prefill")
        cache = reorder(cache, jnp.zeros((BATCH, 2), jnp.int32))
        one, cache = model.apply(variables, cache, more[:, :, :1], method="extend")
        three, _ = model.apply(variables, cache, more[:, :, 1:], method="extend")
        texts = jnp.concatenate([jnp.repeat(batch["text"][:, None], 2, axis=1), more], axis=2)
        texts = texts.reshape(2 * BATCH, -1)
        ones = jnp.ones(texts.shape, int)
        whole = {"text": texts, "mask_input": texts != PAD, "mask_ar": ones, "segment": 0 * ones}
        full = model.apply(variables, jnp.repeat(encoded, 2, axis=0), whole, method="read")
        return first, jnp.concatenate([one, three], axis=2), full.reshape(BATCH, 2, -1, 40)

    first, following, full = both_ways({k: v for k, v in photos().items() if k != "meta"})
    np.testing.assert_allclose(first, full[:, :1, WIDTH - 1], atol=1e-4)
    np.testing.assert_allclose(following, full[:, :, WIDTH:], atol=1e-4)
    assert np.abs(full[:, 0, WIDTH:] - full[:, 1, WIDTH:]).max() > 0.5  # the tokens matter


def test_a_real_model_searches_with_beams_sharded_as_unsharded():
    model, variables = real_model()
    settings = dict(max_len=9, num_beams=2, num_return=2, length_penalty=-1)
    tokens, scores = generate(model, variables, photos(), **settings)
    mesh = make_mesh(4, 2)
    batch, variables = place(photos(), variables, mesh)
    with jax.set_mesh(mesh):
        sharded_tokens, sharded_scores = generate(model, variables, batch, **settings)
    assert (np.asarray(sharded_tokens) == np.asarray(tokens)).all()
    np.testing.assert_allclose(sharded_scores, scores, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        dict(method="greedy", max_new=6, min_new=2),
        dict(method="beam", max_new=6, num_beams=2, padding="reference"),
        dict(method="sample", max_len=11, min_len=7, num_samples=2, top_k=20, top_p=0.9),
    ],
    ids=lambda s: s["method"],
)
def test_a_sharded_batch_decodes_as_an_unsharded_one(small, settings):
    model, variables = small
    settings = settings | {"rng": jax.random.key(3)}
    tokens, scores = generate(model, variables, photos(), **settings)
    mesh = make_mesh(4, 2)
    batch, placed = place(photos(), variables, mesh)
    with jax.set_mesh(mesh):
        sharded_tokens, sharded_scores = generate(model, placed, batch, **settings)
    assert sharded_tokens.sharding.is_equivalent_to(batch["text"].sharding, 3)
    assert (np.asarray(sharded_tokens) == np.asarray(tokens)).all()
    np.testing.assert_allclose(sharded_scores, scores, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (BATCH, 2 if settings["method"] == "sample" else 1, 6)


def test_other_photos_and_weights_compile_nothing_new(small):
    model, variables = small
    generate(model, variables, photos(), method="greedy", max_new=6)
    compiled = _compiled._cache_size()
    first, _ = generate(model, variables, photos(1), method="greedy", max_new=6)
    other, _ = generate(model, jax.tree.map(lambda x: -x, variables), photos(1), method="greedy", max_new=6)
    assert _compiled._cache_size() == compiled
    assert (first != other).any()


def test_an_image_does_not_depend_on_its_batch(small):
    model, variables = small
    tokens, scores = generate(model, variables, photos(), max_len=11)
    alone = {k: v[2:3] for k, v in photos().items()}
    one, score = generate(model, variables, alone, max_len=11)
    assert (one[0] == tokens[2]).all()
    np.testing.assert_allclose(score[0], scores[2], rtol=1e-4)


def test_reference_padding_keeps_one_pad_behind_all_but_the_longest():
    given = np.array([[0, 7, 8, 9, PAD, PAD], [PAD, PAD, PAD, 0, 7, 8], [PAD, 0, 7, 8, 9, PAD], [0, 3, 4, 5, 6, 7]])
    last = jnp.array([True, True, True, False])  # the last row fills up the batch
    mask = jnp.asarray(given != PAD)
    prompt, real, longest = pad_as_reference(jnp.asarray(given), mask, last)
    assert (real == (prompt != PAD)).all()
    assert prompt.tolist() == [[PAD, PAD, 0, 7, 8, 9], [PAD, PAD, 0, 7, 8, PAD], [PAD, PAD, 0, 7, 8, 9], [*given[3]]]
    assert longest == 4
    assert pad_as_reference(jnp.asarray(given), mask)[0][0].tolist() == [PAD, 0, 7, 8, 9, PAD]


def padded(lengths, width, side):
    rows = [[0, *range(5 + i, 4 + i + n)] for i, n in enumerate(lengths)]
    spare = [[PAD] * (width - len(row)) for row in rows]
    rows = [s + r if side == "left" else r + s for r, s in zip(rows, spare, strict=True)]
    return photos() | asked(rows)


LENGTHS = [4, 2, 3, 4, 2, 2, 3, 2]


@pytest.mark.slow
def test_reference_padding_ranks_as_padding_to_the_longest_does():
    """The reference pads questions on the right, to the longest of the batch."""
    model, variables = real_model()
    answers = np.array([[9, 4, EOS], [8, EOS, PAD], [7, 6, EOS], [5, EOS, PAD]], np.int32)
    given = padded(LENGTHS, 9, "left")
    _, candidates, scores = rank_answers(model, variables, padded(LENGTHS, 4, "right"), answers, k=3)
    _, ours, our_scores = rank_answers(model, variables, given, answers, k=3, padding="reference")
    _, _, own_scores = rank_answers(model, variables, given, answers, k=3)
    assert (ours == candidates).all()
    np.testing.assert_allclose(our_scores, scores, rtol=1e-4)
    longest = np.array(LENGTHS) == 4
    np.testing.assert_allclose(own_scores[longest], scores[longest], rtol=1e-4)
    assert not np.isclose(own_scores[~longest], scores[~longest], rtol=1e-3).all(axis=1).any()
    # With shorter neighbours the second question is the longest: only the reference's answer to it changes.
    for key in ("text", "mask_input"):
        given[key][[0, 2, 3, 6]] = given[key][1]
    _, _, our_scores = rank_answers(model, variables, given, answers, k=3, padding="reference")
    _, _, changed = rank_answers(model, variables, given, answers, k=3)
    np.testing.assert_allclose(changed[1], own_scores[1], rtol=1e-4)
    assert not np.isclose(our_scores[1], scores[1], rtol=1e-3).all()


def test_reference_padding_counts_the_longest_prompt_in_the_length_of_a_beam(small):
    model, variables = small
    settings = dict(max_new=7, min_new=2, length_penalty=-1)
    expected, scores = generate(model, variables, padded(LENGTHS, 4, "right"), **settings)
    found, ours = generate(model, variables, padded(LENGTHS, 9, "left"), padding="reference", **settings)
    _, own = generate(model, variables, padded(LENGTHS, 9, "left"), **settings)
    assert (found == expected).all()
    assert (found == EOS).any()
    np.testing.assert_allclose(ours, scores, rtol=1e-4)
    assert not np.isclose(own, scores, rtol=1e-3).any()


@pytest.mark.parametrize("length", ["lavis", "lavis_4.26"])
def test_min_len_and_max_len_count_the_prompt_once_whatever_the_rule_of_lengths_is(small, length):
    found, _ = generate(*small, photos(), method="greedy", max_len=WIDTH + 6, min_len=WIDTH + 4, length=length)
    expected, _ = generate(*small, photos(), method="greedy", max_new=6, min_new=4)
    shorter, _ = generate(*small, photos(), method="greedy", max_new=6, min_new=3)
    assert (found == expected).all()
    assert (found != shorter).any()


def test_bfloat16_logits_give_float32_scores(small):
    model, variables = small
    for method in ("beam", "greedy"):
        _, scores = generate(model.clone(dtype="bfloat16"), variables, photos(), max_len=11, method=method)
        assert scores.dtype == jnp.float32
        assert np.isfinite(scores).all()


def test_the_answers_of_a_batch_are_ranked_where_it_lies(small):
    model, variables = small
    answers = np.array([[9, 4, EOS], [8, EOS, PAD], [7, 6, EOS], [5, EOS, PAD]], np.int32)
    best, candidates, scores = rank_answers(model, variables, photos(), answers, k=3)
    winner = np.argmax(scores, axis=1)
    assert (best == candidates[np.arange(BATCH), winner]).all()
    assert len(set(best.tolist())) > 1
    batch, _ = place(photos(), variables, make_mesh(8))
    again = rank_answers(model, variables, batch, answers, k=3)
    assert (np.asarray(again[1]) == np.asarray(candidates)).all()
    np.testing.assert_allclose(again[2], scores, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="baem", max_len=9), "Did you mean 'beam'"),
        (dict(num_beam=3, max_len=9), "Did you mean 'num_beams'"),
        (dict(method="greedy", num_beams=3, max_len=9), "num_beams"),
        (dict(num_beams=100_000, max_len=9), "num_beams=100000: must be from 1 to 1000"),
        (dict(num_beams=0, max_len=9), "num_beams=0: must be from 1"),
        (dict(method="sample", num_samples=10**9, max_len=9), "num_samples=1000000000: must be from 1"),
        (dict(max_len=9, max_new=3), "one of max_len and max_new"),
        (dict(), "one of max_len and max_new"),
        (dict(max_len=9, min_len=6, min_new=1), "at most one of min_len and min_new"),
        (dict(method="sample", max_len=9), r"rng=jax.random.key"),
        (dict(max_len=9, padding="referenc"), "Did you mean 'reference'"),
        (dict(max_new=9, length="lavi"), "Unknown length of .* Did you mean 'lavis'"),
        (dict(max_new=9, prompt_length=-5), "prompt_length=-5: must not be negative"),
    ],
)
def test_what_cannot_be_done_is_the_users_error(small, settings, message):
    model, variables = small
    with pytest.raises(UserError, match=message):
        generate(model, variables, photos(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(length="lavi"), "Unknown length of caption: 'lavi'. Did you mean 'lavis'"),
        (dict(method="sample", filtering="nanovl"), "Unknown filtering of caption: .* Did you mean 'nanovlm'"),
        (dict(repetition_penalty=-1.0), "repetition_penalty > 0"),
        (dict(ahead=-50), "ahead=-50: must not be negative"),
        (dict(prompt_length=-5), "prompt_length=-5: must not be negative"),
        (dict(min_new=10), "min_new above max_new"),
    ],
)
def test_settings_that_cannot_be_are_found_before_a_model_decodes(settings, message):
    check({"max_new": 9, "min_new": 9, "length": "lavis", "ahead": 1}, "caption")
    with pytest.raises(UserError, match=message):
        check({"max_new": 9, **settings}, "caption")


@pytest.mark.parametrize("missing", ["text", "mask_input"])
def test_a_batch_without_prompts_names_the_op_that_is_missing(small, missing):
    model, variables = small
    batch = {key: value for key, value in photos().items() if key != missing}
    with pytest.raises(UserError, match=f"The batch has no '{missing}'.* Add an op to pp"):
        generate(model, variables, batch, max_new=3)
