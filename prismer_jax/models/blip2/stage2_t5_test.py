"""BLIP-2 with T5: what is written is scored alike, wherever pads are; golden cases are in tools.parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import decode, models, pp, tree
from prismer_jax.models.blip2 import FREEZE, losses
from prismer_jax.models.blip2.split import tensor_rules
from prismer_jax.optim import merge, split


@pytest.fixture(scope="module")
def tiny():
    tokenizer = pp.tokenizer.load("scenes")
    language = dict(vocab_size=tokenizer.vocab_size, layers=1, decoder_layers=1)
    model = models.build("blip2", variant="tiny_t5", language=language, tokenizer=tokenizer)
    rng = np.random.default_rng(0)

    def fill(path, x):
        noise, fan = rng.standard_normal(x.shape, np.float32), x.shape[-2] if x.ndim > 1 else 100
        return noise * fan**-0.5 + path[-1].key.endswith("scale")

    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))  # to initialise it takes longer than the test
    return model, jax.tree.map(jnp.asarray, jax.tree.map_with_path(fill, shapes)), tokenizer


def batch_of(tokenizer, spec, *examples):
    rng = np.random.default_rng(0)
    rows = [pp.build(spec, tokenizer)(example, rng) for example in examples]
    images = np.random.default_rng(1).integers(0, 256, (len(rows), 42, 42, 3), np.uint8)
    return {"image": images} | {
        k: np.stack([row[k] for row in rows]) for k in ("text", "mask_input", "mask_ar", "segment", "mask_loss")
    }


def test_beams_write_what_the_model_scores(tiny):
    """Whatever pads there are in front of, between and behind prompt and text."""
    model, variables, tokenizer = tiny
    asked = batch_of(tokenizer, "seq2seq(4)", {"prompt": "a"}, {"prompt": "red cone"})
    settings = dict(num_beams=2, max_new=5, min_new=5, length="start", length_penalty=0.0)
    tokens, scores = decode.generate(model, variables, asked, eos=tokenizer.eos, pad=tokenizer.pad, **settings)
    assert model.start == tokenizer.pad
    written = np.asarray(tokens[:, 0])
    front = {key: np.pad(asked[key], ((0, 0), (2, 1))) for key in ("text", "mask_input", "mask_ar", "segment")}
    ones = np.ones(written.shape, np.int32)
    behind = {"text": written, "mask_input": ones > 0, "mask_ar": ones, "segment": 0 * ones}
    whole = {"image": asked["image"]} | {k: np.concatenate([front[k], behind[k]], axis=1) for k in behind}

    @jax.jit
    def score(variables, batch):
        of, behind = (model.apply(variables, batch, method=method) for method in ("predictions", "__call__"))
        gains = jnp.take_along_axis(jax.nn.log_softmax(of), batch["text"][..., None], axis=2)[:, -5:, 0]
        return gains.sum(1), of[:, 1:], behind[:, :-1]

    sums, of, behind = score(variables, whole)
    np.testing.assert_allclose(scores[:, 0], sums, rtol=1e-4)
    np.testing.assert_allclose(of, behind, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_stage_2_trains_the_q_former_and_the_projection_alone(tiny):
    model, variables, tokenizer = tiny
    spec = "caption(style='blip')|prefix_suffix()|seq2seq(6, 8)"
    batch = batch_of(tokenizer, spec, {"captions": ["A big red cone."]}, {"captions": ["a cone and a sphere"]})
    trained, frozen = split(variables["params"], FREEZE["freeze_lang_vision"])
    assert {name.partition("/")[0] for name in trained} == {"norm_vision", "projector", "qformer"}

    def loss(trained):
        forward = functools.partial(model.apply, {"params": merge(trained, frozen)})
        cost, weight = losses.stage2(forward, jax.tree.map(jnp.asarray, batch))["loss"]
        return cost.sum() / weight.sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(trained)
    assert 0 < value < 100
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads))


def test_every_rule_of_the_axis_tensor_splits_something(tiny):
    model, variables, _ = tiny
    names = tree.flatten(variables["params"])
    patterns = [pattern for pattern, _ in tensor_rules(model)]
    places = tree.first_match(patterns, names, "tensor rules")
    assert set(places.values()) == set(range(len(patterns)))
    kernels = {name for name in names if name.startswith("language/") and name.endswith("kernel")}
    assert kernels <= places.keys()
