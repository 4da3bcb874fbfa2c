import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prismer_jax import losses, models, optim, tree
from prismer_jax.batch import prompts
from prismer_jax.errors import UserError
from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS, WORDS_KEY, blank
from prismer_jax.models import conversion
from prismer_jax.models.prismer import FREEZE, build
from prismer_jax.models.prismer.table import TABLE
from prismer_jax.models.vlm import text_mask

SMALL = dict(image_size=32, width=32, layers=2, heads=2, latents=4, resampler_layers=1, resampler_heads=2)
SMALL["decoder"] = dict(width=32, layers=2, heads=2, mlp_dim=64, vocab_size=50, max_positions=20)


@functools.cache
def small(experts: str = "all", **fields):
    model = build("tiny", experts, **{**SMALL, **fields})
    return model, jax.jit(model.init_variables)(jax.random.key(0))


def texts(ids) -> dict[str, np.ndarray]:
    ids = np.asarray(ids, np.int32)
    return prompts(ids, ids != 1)


def columns(batch, part) -> dict[str, jax.Array]:
    """Returns these columns of a batch's text."""
    return {key: batch[key][:, part] for key in ("text", "mask_input", "mask_ar", "segment")}


def a_batch(size: int = 2, labels=tuple(EXPERTS)) -> dict[str, jax.Array]:
    rng = np.random.RandomState(0)
    text = rng.randint(3, 50, (size, 7))
    text[1, 5:] = 1
    batch = {"image": rng.randint(0, 256, (size, 32, 32, 3), np.uint8), **texts(text)}
    for name in labels:
        highest = 5 if EXPERTS[name].storage == "ids" else 256
        batch[EXPERTS[name].key] = rng.randint(0, highest, (size, 48, 32, EXPERTS[name].channels)).astype(np.uint8)
    batch[CLASSES_KEY] = rng.randint(-1, 700, (size, 256)).astype(np.int32)
    batch[WORDS_KEY] = rng.standard_normal((size, 256, 64)).astype(np.float16)
    return jax.tree.map(jnp.asarray, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, variables, *args, **kwargs):
    return model.apply(variables, *args, **kwargs, method=method)


@functools.partial(jax.jit, static_argnums=(0, 4))
def prefill(model, variables, encoded, batch, room):
    return model.apply(variables, encoded, batch, room, method="prefill")


def training_loss(model, params, variables, batch, seed=0):
    rngs = dict(zip(("dropout", "instance"), jax.random.split(jax.random.key(seed)), strict=True))
    variables = {**variables, "params": params}
    logits, new = model.apply(variables, batch, True, rngs=rngs, mutable=["batch_stats"])
    mask = (batch["text"] != 1).astype(jnp.float32)
    return losses.token_costs(logits, batch["text"], mask).mean(), new.get("batch_stats", {})


# The numbers of parameters (with BatchNorm's statistics) are those of the official models at 480 px.
@pytest.mark.parametrize(
    ("variant", "experts", "count"),
    [
        ("base", "all", 328026681),
        ("large", "all", 968091353),
        ("huge", "all", 1415967097),
        ("base", "none", 274875993),
        ("large", "none", 873778265),
        ("huge", "none", 1268768857),
    ],
)
def test_full_sizes_have_the_official_number_of_parameters(variant, experts, count):
    model = models.build("prismer", variant=variant, experts=experts)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    leaves = tree.flatten({k: shapes[k] for k in ("params", "batch_stats")})
    assert sum(int(np.prod(x.shape)) for name, x in leaves.items() if not name.endswith("/count")) == count
    assert hash(model) == hash(models.build("prismer", variant=variant, experts=experts))


def test_prefill_and_extend_give_the_logits_of_the_whole_text():
    model, variables = small()
    batch = a_batch()
    encoded = apply(model, "encode", variables, batch)
    whole = apply(model, "read", variables, encoded, batch)
    np.testing.assert_allclose(whole, apply(model, "__call__", variables, batch), atol=1e-5)
    logits, cache = prefill(model, variables, encoded, columns(batch, slice(3)), 4)
    np.testing.assert_allclose(logits[:, 0], whole[:, 2], atol=1e-5)
    for part in (slice(3, 4), slice(4, 7)):  # one token, then several at once
        logits, cache = apply(model, "extend", variables, cache, batch["text"][:, None, part])
        real = np.asarray(batch["mask_input"][:, part])
        np.testing.assert_allclose(np.asarray(logits[:, 0])[real], np.asarray(whole[:, part])[real], atol=1e-5)
    assert int(cache["index"]) == 4


def test_texts_packed_into_one_sequence_do_not_see_each_other():
    model, variables = small()
    batch = a_batch()
    encoded = apply(model, "encode", variables, batch)[:1]
    rows = [[0, 5, 6, 7, 2], [0, 8, 9, 2], [0, 5, 2]]
    segment = np.array([[0] * 5 + [1] * 4 + [2] * 5], np.int32)
    packed = texts([[*rows[0], *rows[1], *rows[2], 1, 1]]) | {"segment": segment}
    together = apply(model, "read", variables, encoded, packed)[0]
    start = 0
    for text in rows:
        alone = apply(model, "read", variables, encoded, texts([text]))[0]
        np.testing.assert_allclose(together[start : start + len(text)], alone, atol=1e-5)
        start += len(text)


def test_a_text_of_more_columns_than_int8_counts_is_seen_causally():
    """jnp.cumsum (jax 0.10.2) keeps the type of small integers: after 127 comes -128."""
    ones = jnp.ones((1, 300), jnp.int8)
    mask = text_mask({"mask_ar": ones, "mask_input": ones == 1, "segment": 0 * ones})
    np.testing.assert_array_equal(mask[0], np.tri(300, dtype=bool))


def test_padding_on_the_left_changes_nothing():
    """Positions count real tokens and padding is never attended to, in the prompt and after it."""
    model, variables = small("none")
    batch = a_batch(labels=())
    encoded = apply(model, "encode", variables, batch)
    prompt, new = batch["text"][:, :3], batch["text"][:, None, 3:5]
    padded = jnp.pad(prompt, [(0, 0), (2, 0)], constant_values=1)
    results = []
    for text in (prompt, padded):
        logits, cache = prefill(model, variables, encoded, texts(text), 2)
        results.append((logits, apply(model, "extend", variables, cache, new)[0]))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_missing_label_is_the_background():
    model, variables = small()
    given = ("depth", "seg_coco")
    some = a_batch(labels=given)
    full = dict(some)
    for name in set(model.experts) - set(given):
        full[EXPERTS[name].key] = jnp.asarray(np.stack([blank(name, 48, 32)] * 2))
    with jax.enable_x64(True):  # in float32 the last digits are the processor's
        exact = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, variables)
        double = model.clone(dtype=jnp.float64)
        ours, theirs = (apply(double, "encode", exact, batch) for batch in (some, full))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert apply(model, "encode", variables, {"image": some["image"]}).shape == (2, 4 + 4, 32)  # patches, latents


def test_a_prefix_sees_all_of_itself_where_mask_ar_says_so():
    model, variables = small("none")
    batch = a_batch(labels=())
    prefix = {**batch, "mask_ar": batch["mask_ar"].at[:, :4].set(0)}
    encoded = apply(model, "encode", variables, batch)
    causal, ours = (apply(model, "read", variables, encoded, b) for b in (batch, prefix))
    changed = {**prefix, "text": prefix["text"].at[:, 3].add(1)}
    other = apply(model, "read", variables, encoded, changed)
    assert np.abs(ours[:, 0] - other[:, 0]).max() > 1e-4  # the first column sees the fourth
    assert np.abs(ours[:, 0] - causal[:, 0]).max() > 1e-4
    later = {**prefix, "text": prefix["text"].at[:, 4].add(1)}
    np.testing.assert_allclose(apply(model, "read", variables, encoded, later)[:, :4], ours[:, :4], atol=1e-5)


def test_positions_count_on_from_the_tokenizers_padding():
    """With padding 0, as T5 has it, the first token has position 1, and the table holds one text token more."""

    class T5:
        pad, vocab_size, spec = 0, 50, "t5"

    model = models.build("prismer", variant="tiny", experts="none", tokenizer=T5, **SMALL)
    assert model.pad == 0
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    table = variables["params"]["decoder"]["position_embedding"]
    assert not table[0].any()
    assert table[1].any()
    batch = a_batch(labels=())
    batch |= prompts(np.full((2, 19), 5, np.int32), np.ones((2, 19), bool))
    assert apply(model, "__call__", variables, batch).shape == (2, 19, 50)


def test_several_images_a_row_are_a_user_error():
    model, variables = small("none")
    batch = a_batch(labels=())
    with pytest.raises(UserError, match="reads one image a row"):
        model.apply(variables, {**batch, "image": batch["image"][:, None]})


def test_with_places_a_word_is_on_the_tokens_near_it():
    """Without, it is in the latents alone, one of all things that experts see; a small model did not learn to read."""
    word = np.full((1, 64, 64, 1), BACKGROUND, np.uint8)
    word[:, 4:12, 4:12] = 0  # on four of the eight by eight patches
    features = np.random.RandomState(0).standard_normal((2, 1, 256, 64)).astype(np.float16)
    batch = {"image": np.full((1, 128, 128, 3), 128, np.uint8), EXPERTS["ocr_detection"].key: word}
    one, other = (jax.tree.map(jnp.asarray, {**batch, WORDS_KEY: said}) for said in features)

    def moved(model, variables):
        """How much another word changes each patch's token, [8, 8]."""
        change = apply(model, "encode", variables, one) - apply(model, "encode", variables, other)
        return np.abs(np.asarray(change))[0, :64].max(-1).reshape(8, 8)

    def near_and_far(model, variables):
        return moved(model, variables)[:3, :3].mean(), moved(model, variables)[5:, 5:].mean()

    model, variables = small("ocr_detection", image_size=128, places=True)
    variables = jax.tree.map(jnp.asarray, variables)
    variables["params"]["encoder"]["places"]["kernel"] *= 0
    near, far = near_and_far(model, variables)
    assert near < 3 * far
    kernel = np.random.RandomState(1).standard_normal((32 + 64, 32)).astype(np.float32)
    variables["params"]["encoder"]["places"]["kernel"] = jnp.asarray(kernel)
    near, far = near_and_far(model, variables)
    assert near > 20 * far
    kernel[:32] = 0  # without what the stem reads: the word's own vector, on the patches that show it
    variables["params"]["encoder"]["places"]["kernel"] = jnp.asarray(kernel)
    changed = np.argwhere(moved(model, variables) > 30 * near_and_far(model, variables)[1])
    assert changed.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_places_change_no_model_without_them_and_have_no_official_name():
    fields = {**SMALL, "image_size": 48}
    plain, model = (build("tiny", "depth+ocr_detection", **fields, places=places) for places in (False, True))
    fewer, more = (tree.flatten(jax.eval_shape(x.init_variables, jax.random.key(0))) for x in (plain, model))
    names = more.keys() - fewer.keys()
    assert names == {f"params/encoder/places/{name}" for name in ("kernel", "bias")}
    assert conversion.table_of("prismer", plain) is TABLE
    with pytest.raises(UserError, match="`places` has no names in the official files"):
        conversion.table_of("prismer", model)


def test_every_label_and_table_matters():
    model, variables = small()
    batch = a_batch(labels=model.experts)
    before = apply(model, "encode", variables, batch)
    for key in [k for k in batch if k.startswith("labels/")]:
        changed = {**batch, key: batch[key][::-1]}
        assert np.abs(before - apply(model, "encode", variables, changed)).max() > 1e-4, key


def test_instances_are_named_alike_in_inference_and_at_random_in_training():
    model, variables = small("obj_detection")
    batch = a_batch(labels=("obj_detection",))
    encode = functools.partial(apply, model, "encode", variables, batch)
    np.testing.assert_array_equal(encode(), encode(instance_rows=jnp.arange(256)[None] % 128))
    rows = jnp.asarray(np.random.RandomState(1).randint(0, 128, (2, 256)))
    assert np.abs(encode() - encode(instance_rows=rows)).max() > 1e-4
    step = jax.jit(functools.partial(training_loss, model))
    losses_of = [float(step(variables["params"], variables, batch, seed)[0]) for seed in (1, 1, 2)]
    assert losses_of[0] == losses_of[1] != losses_of[2]


def test_the_rows_of_padding_get_no_gradient_from_lookups():
    """As PyTorch's Embedding(padding_idx=1): plain autodiff of a gather would train them."""
    model, variables = small("none")
    batch = a_batch(labels=())

    def loss(params):
        logits = model.apply({**variables, "params": params}, batch)
        return losses.token_costs(logits, batch["text"], batch["mask_input"].astype(jnp.float32)).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])["decoder"]
    assert not gradient["position_embedding"][1].any()
    assert gradient["position_embedding"][2].any()
    assert gradient["word_embedding"][1].any()  # the tied head's part


@pytest.mark.slow
def test_remat_changes_no_gradient():
    plain, variables = small("none")
    batch = a_batch(labels=())
    gradients = [
        jax.jit(jax.grad(lambda p, m=m: training_loss(m, p, variables, batch)[0]))(variables["params"])
        for m in (plain, *(build("tiny", "none", **SMALL, remat=policy) for policy in ("full", "dots")))
    ]
    for exact, *others in zip(*map(jax.tree.leaves, gradients), strict=True):
        for ours in others:
            np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-5)


def test_remat_keeps_few_maps_of_a_stem():
    """Those of its first convolution, [b 24 16 4]: at 480 pixels they are the largest arrays of a step by far."""
    variables, batch = small("depth")[1], a_batch(labels=("depth",))

    def maps(remat):
        model = build("tiny", "depth", **SMALL, remat=remat)
        loss = functools.partial(training_loss, model, variables=variables, batch=batch)
        backward = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p)[0], p)[1], variables["params"])
        return [x.shape[1:] for x in jax.tree.leaves(backward)].count((24, 16, 4))

    assert maps("full") == 0 < maps("dots") == 1 < maps("none")


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
    model, variables = small("depth")
    batch = a_batch(labels=("depth",))
    half = build("tiny", "depth", **SMALL, dtype="bfloat16")
    ours = apply(half, "__call__", variables, batch)
    assert ours.dtype == jnp.float32
    assert apply(half, "encode", variables, batch).dtype == jnp.bfloat16
    exact = apply(model, "__call__", variables, batch)
    assert 0 < float(jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)) < 0.05
    params = jax.eval_shape(half.init_variables, jax.random.key(0))["params"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_batch_statistics_are_those_of_the_whole_sharded_batch():
    model, variables = small("depth")
    batch = a_batch(8, labels=("depth",))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(functools.partial(training_loss, model))
    (loss, stats), (loss_8, stats_8) = (step(variables["params"], variables, b) for b in (batch, sharded))
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (stats_8, stats)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_freezing_keeps_what_connects_vision_and_language():
    model, _ = small()
    params = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
    for mode in ("freeze_vision", "freeze_lang", "freeze_lang_vision"):
        trainable, frozen = optim.split(params, FREEZE[mode])
        for part in ("adaptor", "cross", "resampler", "stem", "position_embedding", "output_layer", "head"):
            assert any(part in name for name in trainable), part
        assert any("encoder/blocks/attention" in name for name in frozen) == ("vision" in mode)
        assert any("decoder/layers/self_attention" in name for name in frozen) == ("lang" in mode)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(variant="bse"), "Did you mean 'base'"),
        (dict(widht=32), "Did you mean 'width'"),
        (dict(decoder=dict(vocab=9)), "Did you mean 'vocab_size'"),
        (dict(experts="dept"), "Did you mean 'depth'"),
        (dict(classes=dict(depth=["a"])), "depth has no classes"),
        (dict(width=100, heads=3), "not a multiple"),
        (dict(heads=0), "width 768 is not a multiple of 0 heads"),
        (dict(image_size=0), "image_size=0 must be at least patch_size=16"),
        (dict(image_size=-480), "image_size=-480 must be at least"),
        (dict(patch_size=0), "patch_size=0, and both above 0"),
        (dict(remat="ful", variant="tiny"), "Did you mean 'full'"),
    ],
)
def test_misspelt_fields_are_user_errors(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(models.build("prismer", **fields).init_variables, jax.random.key(0))


def test_a_text_beyond_the_position_table_is_a_user_error():
    """A gather beyond the table would silently give its last row."""
    model, variables = small("none")
    with pytest.raises(UserError, match="max_positions allows 18"):
        model.apply(variables, {**a_batch(labels=()), **texts(np.zeros((2, 19)))})
