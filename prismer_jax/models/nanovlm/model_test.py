"""nanoVLM's decoding equals full passes, its texts do not depend on their neighbours, and experts start as nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import models, tree
from prismer_jax.batch import prompts
from prismer_jax.decode import generate
from prismer_jax.errors import UserError
from prismer_jax.models.nanovlm import RESIZE, build

IMAGE, TOKENS = 259, 4  # the tiny variant's image token, and how many a tile takes


@functools.cache
def tiny(**fields):
    model = build("tiny", **fields)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    return model, {**variables, "params": jax.tree.map(lambda x: 2 * x, variables["params"])}


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, inputs):
    """One program: op by op, most of a test's time would go to compiling each."""
    return model.apply(variables, inputs)


def batch(tiles, lengths, columns, front=False, seed=0):
    """Rows with so many tiles and words after them, padded on the left; as in training and prompts."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (len(tiles), max(tiles), 32, 32, 3), np.uint8)
    text, real = np.zeros((2, len(tiles), columns), np.int32)
    for row, (count, length) in enumerate(zip(tiles, lengths, strict=True)):
        ids = [*([] if front else [IMAGE] * TOKENS * count), *rng.integers(5, 250, length)]
        text[row, columns - len(ids) :], real[row, columns - len(ids) :] = ids, 1
    there = np.arange(max(tiles)) < np.array(tiles)[:, None]
    return {"image": image, "image_mask": there, **prompts(text, real > 0)}


@pytest.mark.parametrize("front", [False, True])
def test_decoding_with_a_cache_equals_full_passes(front):
    model, variables = tiny(image_token=None) if front else tiny()
    inputs = batch([2, 1], [5, 7], 15, front)
    tokens, scores = generate(
        model, variables, inputs, eos=2, pad=2, method="beam", num_beams=3, max_new=5, min_new=5, prompt_length=0
    )
    after = prompts(tokens[:, 0], np.ones(tokens[:, 0].shape, bool))
    whole = {**inputs, **{key: np.concatenate([inputs[key], after[key]], axis=1) for key in after}}
    log_probs = jax.nn.log_softmax(apply(model, variables, whole)[:, -6:-1])
    sums = jnp.take_along_axis(log_probs, tokens[:, 0][..., None], axis=2).sum((1, 2))
    np.testing.assert_allclose(scores[:, 0], sums / 5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("front", [False, True])
def test_a_text_depends_neither_on_its_neighbours_nor_on_padding(front):
    model, variables = tiny(image_token=None) if front else tiny()
    inputs = batch([2, 1], [5, 7], 15, front)
    alone = {key: value[1:] for key, value in inputs.items()}
    alone |= {key: alone[key][:, -(7 if front else 11) :] for key in ("text", "mask_input", "mask_ar", "segment")}
    alone |= {"image": alone["image"][:, :1], "image_mask": alone["image_mask"][:, :1]}
    logits, own = apply(model, variables, inputs)[1, -7:], apply(model, variables, alone)[0, -7:]
    np.testing.assert_allclose(logits, own, rtol=1e-4, atol=1e-5)


def test_beams_depend_neither_on_neighbours_nor_on_padding():
    """A length that counted columns would weigh short texts against long ones by the longest prompt of a batch."""
    model, variables = tiny()
    short, long = batch([1], [7], 11), batch([1], [7], 60)
    settings = dict(eos=2, pad=2, method="beam", num_beams=3, max_new=6)
    (tokens, scores), (longer, same) = (generate(model, variables, inputs, **settings) for inputs in (short, long))
    np.testing.assert_array_equal(tokens, longer)
    np.testing.assert_allclose(scores, same, rtol=1e-4)
    with pytest.raises(UserError, match=r"max_len and min_len count columns, .*: give \.\.\._new"):
        generate(model, variables, short, **settings | dict(max_new=0, max_len=40))


def test_reference_positions_depend_on_padding_in_front_of_a_text():
    model, variables = tiny(image_token=None, positions="column")
    inputs = batch([1, 1], [5, 7], 9, front=True)
    shorter = {k: v[:, -7:] if k in ("text", "mask_input", "mask_ar", "segment") else v for k, v in inputs.items()}
    logits, own = apply(model, variables, inputs)[1, -7:], apply(model, variables, shorter)[1, -7:]
    assert not np.allclose(logits, own, rtol=1e-3)


def test_texts_of_a_row_see_the_image_and_not_each_other():
    model, variables = tiny(image_token=None)
    one, two = (batch([1], [6], 6, front=True, seed=seed) for seed in (0, 1))
    row = {key: np.concatenate([one[key], two[key]], axis=1) for key in ("text", "mask_input", "mask_ar", "segment")}
    row["segment"][:, 6:] = 1
    logits = apply(model, variables, {**one, **row})
    second = {**two, "image": one["image"]}
    np.testing.assert_allclose(logits[:, 6:], apply(model, variables, second), rtol=1e-4, atol=1e-5)
    blank = {**one, **row, "image": 0 * one["image"]}
    assert not np.allclose(logits[:, 6:], apply(model, variables, blank)[:, 6:], rtol=1e-3)


def test_a_text_without_images_is_read():
    model, variables = tiny()
    inputs = batch([1], [6], 10)
    text = {key: inputs[key][:, 4:] for key in ("text", "mask_input", "mask_ar", "segment")}
    none = {**text, "image": inputs["image"], "image_mask": np.zeros((1, 1), bool)}
    np.testing.assert_array_equal(apply(model, variables, text), apply(model, variables, none))


@pytest.mark.parametrize("front", [False, True])
def test_experts_change_nothing_until_they_are_trained(front):
    fields = dict(image_token=None) if front else {}
    model, variables = tiny(**fields)
    seeing = build("tiny", experts="depth+seg_coco+obj_detection", **fields)
    fresh = jax.jit(seeing.init_variables)(jax.random.key(1))
    merged = {**fresh, "params": {**fresh["params"], **variables["params"]}}
    inputs = batch([2, 1], [5, 7], 15, front)
    shape = (2, 2, 16, 16, 1)
    inputs |= {f"labels/{name}": np.full(shape, 7, np.uint8) for name in ("depth", "seg_coco", "obj_detection")}
    np.testing.assert_array_equal(apply(seeing, merged, inputs), apply(model, variables, inputs))

    def loss(labels, kernel):
        params = {**merged["params"], "labels": {**merged["params"]["labels"], "out": kernel}}
        return apply(seeing, {**merged, "params": params}, {**inputs, "labels/depth": labels}).sum()

    kernel = jax.tree.map(jnp.ones_like, merged["params"]["labels"]["out"])
    other = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert loss(inputs["labels/depth"], kernel) != loss(other, kernel)


def test_only_what_is_not_trained_yet_has_a_gradient_of_zero():
    """The projection learns from the first step on; the stems once it has."""
    model, _ = tiny(experts="depth")
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    inputs = batch([1], [5], 9) | {
        "labels/depth": np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 1), np.uint8)
    }
    grads = jax.jit(jax.grad(lambda params: apply(model, {**variables, "params": params}, inputs).std()))
    sizes = tree.flatten(grads(variables["params"])["labels"])
    sizes = {name: np.abs(leaf).max() for name, leaf in sizes.items()}
    assert sizes["out/kernel"] > 0
    assert sizes["stem_depth/out/kernel"] == 0


def test_sizes_of_the_published_models():
    for variant, count in (("222m", 222_081_600), ("450m", 450_614_400), ("230m_8k", 228_063_936)):
        shapes = jax.eval_shape(build(variant).init_variables, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(variant="223m"), "Did you mean '222m'"),
        (dict(vision=dict(patch=4)), "field of vision 'patch'"),
        (dict(vision=dict(image_size=0)), "vision.image_size 0 is not a multiple of 4; both must be above 0"),
        (dict(vision=dict(image_size=-8)), "vision.image_size -8 is not"),
        (dict(vision=dict(patch_size=0)), "is not a multiple of 0; both"),
        (dict(language=dict(kv_heads=4)), "language.heads 6 is not a multiple of 4"),
        (dict(shuffle=3), "patches on a side 8 is not a multiple of 3"),
        (dict(positions="row"), "positions 'row'"),
        (dict(experts="dept"), "dept"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        models.build("nanovlm", **{"variant": "tiny", **fields})


def test_positions_of_another_grid_keep_a_class_tokens_row():
    table = jnp.arange(10.0)[:, None] * jnp.ones((1, 3))
    resize = RESIZE["params/vision/position_embedding"]
    larger = resize(table, (17, 3))
    assert larger.shape == (17, 3)
    np.testing.assert_array_equal(larger[0], table[0])
    np.testing.assert_allclose(larger[1:].mean(0), table[1:].mean(0), rtol=0.05)
    np.testing.assert_array_equal(resize(table[1:], (9, 3)), table[1:])


@pytest.mark.parametrize("part", ["vision", "language"])
def test_dropout_is_of_training_alone_and_of_each_step_its_own(part):
    plain, variables = tiny()
    model, rows = build("tiny", **{part: {"dropout": 0.3}}), batch((1,), (3,), 8)
    assert jax.tree.map(jnp.shape, jax.eval_shape(model.init_variables, jax.random.key(0))) == tree_shapes(variables)
    asked = functools.partial(jax.jit(model.apply, static_argnames="train"), variables, rows)
    np.testing.assert_array_equal(asked(), jax.jit(plain.apply)(variables, rows))
    one, again, other = (asked(train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).max() > 1e-3
    assert jnp.abs(one - asked()).max() > 1e-3


def tree_shapes(variables):
    return jax.tree.map(jnp.shape, variables)
