"""Presets and rules: which device holds what, that the values stay those of one device, and the collectives."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from prismer_jax import input, losses, optim, sharding
from prismer_jax.checkpoint import Checkpointer
from prismer_jax.errors import UserError
from prismer_jax.sharding import presets
from prismer_jax.towers import layers
from prismer_jax.training.step import make_update

TENSOR = (
    (".*/(query|key|value|up)/(kernel|bias)", "tensor(axis=-1)"),
    (".*/down/kernel", "tensor(axis=-2)"),
    (".*/out/kernel", "tensor(axis=-2)"),  # which is frozen
    ("word_embedding", "tensor(axis=-2)"),
)
FROZEN = ("attention/out/.*",)


class Toy(nn.Module):
    """What the families have that matters here: tied words, attention, an MLP, BatchNorm over all rows, dropout."""

    rngs = ("dropout",)

    @nn.compact
    def __call__(self, batch, train=False):
        words = self.param("word_embedding", nn.initializers.normal(0.1), (256, 128))
        image = nn.Dense(128, use_bias=False, name="image")(batch["image"])
        image = nn.BatchNorm(use_running_average=not train, name="norm")(image)
        x = sharding.constrain(words[batch["text"]] + image[:, None])
        attention = layers.Attention(128, 8, name="attention")
        x = x + nn.Dropout(0.1, deterministic=not train)(attention(x, attention.keys(x)))
        return (x + layers.MLP(512, jax.nn.gelu, name="mlp")(x)) @ words.T


def toy(spec, mesh, accumulate=1):
    """Returns (init, step, shapes of the state) of a toy whose attention's output is frozen."""
    model, batch = Toy(), {"image": jnp.zeros((2, 4)), "text": jnp.zeros((2, 8), jnp.int32)}
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    tx = optim.make(optim.split(params, FROZEN)[0], 20, lr=1e-2, clip_norm=1.0).tx

    def init(rng):
        variables = model.init(rng, batch)
        trainable, _ = optim.split(variables["params"], FROZEN)
        return {**variables, "opt": tx.init(trainable), "step": jnp.int32(0)}

    def loss(forward, batch):
        costs = losses.token_costs(forward(batch), batch["text"], batch["mask_input"].astype(jnp.float32))
        return {"loss": (costs, jnp.ones(len(costs)))}

    state = sharding.placed(jax.eval_shape(init, jax.random.key(0)), spec, mesh, TENSOR)
    places = jax.tree.map(lambda x: x.sharding, state)
    gradients = sharding.gradients(params, optim.split(params, FROZEN)[0], spec, mesh, TENSOR)
    update = make_update(model, loss, tx, FROZEN, accumulate, gradient_shardings=gradients)
    update = jax.jit(update, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
    return jax.jit(init, out_shardings=places), update, state


class Sentences:
    """A source of 64 examples."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"image": np.random.RandomState(index).standard_normal(4).astype(np.float32)}


def with_text(example, rng):
    """Draws a text: the draws show that a row is the same whatever process reads it."""
    return example | {"text": rng.integers(0, 256, 8, np.int32), "mask_input": np.ones(8, bool)}


def compiled(update, state, batches):
    """Returns the compiled step and the first batch, once all processes have it: Gloo waits for no one for long."""
    first = next(batches)
    update = update.lower(state, first).compile()
    sharding.barrier("compiled")
    return update, first


def run(spec, mesh, steps=20, accumulate=1, state=None):
    """Trains a toy, from a state if one is given. Returns its losses, and its last state."""
    init, update, _ = toy(spec, mesh, accumulate)
    place = sharding.batch_sharding(mesh)
    data, rows = [{"source": Sentences(), "pp": with_text}], sharding.rows_of(place, 16)
    with jax.set_mesh(mesh):
        state = init(jax.random.key(1)) if state is None else state
        batches = input.to_device(input.train_batches(data, batch_size=16, seed=0, rows=rows), place)
        update, batch = compiled(update, state, batches)
        measured = []
        for step in range(steps):
            state, values = update(state, next(batches) if step else batch)
            measured.append(float(values["train/loss"]))
        batches.close()
    return measured, state


@pytest.fixture(scope="module")
def expected():
    """The losses of one device, and its last state."""
    return run((), sharding.make_mesh({"data": 1}, jax.devices()[:1]))


PRESETS = [
    ("replicated", dict(data=8)),
    ("zero1", dict(data=8)),
    ("zero2", dict(fsdp=8)),
    ("zero3", dict(data=2, fsdp=4)),
    ("tensor", dict(data=4, tensor=2)),
    ("tensor+zero3", dict(data=2, fsdp=2, tensor=2)),
]


FAST = ("zero2", "tensor+zero3")  # the others with `-m slow`


@pytest.mark.parametrize(
    ("spec", "axes"),
    [pytest.param(*row, id=row[0], marks=() if row[0] in FAST else pytest.mark.slow) for row in PRESETS],
)
def test_a_preset_has_the_losses_of_one_device(spec, axes, expected):
    measured, state = run(spec, sharding.make_mesh(axes))
    np.testing.assert_allclose(measured, expected[0], rtol=1e-5)
    statistics = [part["batch_stats"]["norm"]["mean"] for part in (state, expected[1])]
    np.testing.assert_allclose(*statistics, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "axes", "count"), [("replicated", {}, 1), ("tensor", {"data": 1, "tensor": 2}, 2), ("zero1", {}, 4)]
)
def test_a_checkpoint_is_restored_by_other_devices_and_presets_and_back_to_the_bit(spec, axes, count, tmp_path):
    whole = sharding.make_mesh({"data": 2, "fsdp": 4})
    init, _, like = toy("zero3", whole)
    state = init(jax.random.key(0))
    mesh = sharding.make_mesh(axes or None, jax.devices()[:count])
    for number, (one, other) in enumerate([(state, toy(spec, mesh)[2]), (None, like)]):
        state = state if one is None else one
        with Checkpointer(tmp_path / str(number)) as saver:
            saver.save(1, state)
            restored = saver.restore(other)
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
            assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
        state = restored
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)


GATHERED = re.compile(r"= f32\[([0-9,]+)\]\S* all-gather\(")


@pytest.mark.parametrize(
    ("spec", "axes", "parts"),
    [
        # Which share of the parameters that are trained, and of Adam's two moments, a device holds.
        pytest.param("replicated", dict(data=8), (1, 1), marks=pytest.mark.slow),
        pytest.param("zero1", dict(data=8), (1, 1 / 8), marks=pytest.mark.slow),
        ("zero2", dict(data=8), (1, 1 / 8)),
        ("zero3", dict(fsdp=8), (1 / 8, 1 / 8)),
        ("tensor", dict(data=1, tensor=8), (1 / 8, 1 / 8)),
        ("tensor+zero3", dict(fsdp=4, tensor=2), (1 / 8, 1 / 8)),
    ],
)
def test_the_compiled_step_holds_its_share_and_moves_no_more_than_it_must(spec, axes, parts):
    mesh = sharding.make_mesh(axes)
    _, update, state = toy(spec, mesh)
    rows = sharding.batch_sharding(mesh)
    batch = {"image": ((16, 4), jnp.float32), "text": ((16, 8), jnp.int32), "mask_input": ((16, 8), bool)}
    batch = {key: jax.ShapeDtypeStruct(*shape, sharding=rows) for key, shape in batch.items()}
    with jax.set_mesh(mesh):
        compiled = update.lower(state, batch).compile()
    whole = {key: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state[key])) for key in ("params", "opt")}
    expected = whole["params"] * parts[0] + whole["opt"] * parts[1]
    assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(expected, rel=0.1)
    trained = optim.split(state["params"], FROZEN)[0].values()
    split, every = (
        collections.Counter(tuple(sorted(x.shape)) for x in leaves if x.size >= presets.LEAST)
        for leaves in (trained, jax.tree.leaves(state["params"]))
    )
    text = compiled.as_text()
    gathered = collections.Counter(tuple(sorted(map(int, shape.split(",")))) for shape in GATHERED.findall(text))
    assert "all-reduce" in text or "reduce-scatter" in text
    if spec in ("zero1", "zero2"):  # each parameter when it is updated, and no gradient before
        assert {shape: gathered[shape] for shape in split} == split
    elif spec == "zero3":  # each, frozen or not, for the forward pass, and at most once more for the backward pass
        assert all(count <= gathered[shape] <= 2 * count for shape, count in every.items()), gathered
    else:
        assert not any(shape in split for shape in gathered) or "+" in spec


def test_what_is_large_and_stays_whole_is_named_once_in_one_line(caplog):
    shapes = {name: jax.ShapeDtypeStruct((3, 3, 375, 625), jnp.float32) for name in ("stem_a", "stem_b")}
    for _ in range(2):
        sharding.placed({"params": shapes}, "zero3", sharding.make_mesh(dict(data=8)))
    (line,) = caplog.messages
    assert line == (
        "Whole on each device, as data=8 divides no dimension: stem_a [3, 3, 375, 625], stem_b [3, 3, 375, 625]."
    )


@pytest.mark.parametrize(("prng", "rows"), [("rbg", 16), ("threefry2x32", 2)])
def test_each_device_draws_for_the_rows_that_it_has_if_the_generator_is_threefry(prng, rows):
    """XLA does not split rbg's; a pod of 256 chips would draw for all rows 256 times."""
    mesh = sharding.make_mesh()

    def update(x, step):
        key = jax.random.fold_in(jax.random.key(0, impl=prng), step)
        return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0)

    x = np.ones((16, 48), np.float32)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, sharding.batch_sharding(mesh))
        compiled = jax.jit(update).lower(placed, 0).compile()
    assert rows == max(map(int, re.findall(r"u32\[(\d+),48\]", compiled.as_text())))
    np.testing.assert_array_equal(compiled(placed, 0), jax.jit(update)(x, 0))  # those of one device


SHAPES = {
    "big": {"kernel": jax.ShapeDtypeStruct((512, 256), jnp.float32), "bias": jax.ShapeDtypeStruct((256,), jnp.float32)},
    "odd": {"kernel": jax.ShapeDtypeStruct((511, 257), jnp.float32)},
}


def shardings(rules, mesh):
    placed = presets.placed({"params": SHAPES}, rules, mesh)["params"]
    return jax.tree.map(lambda x: x.sharding, placed)


def test_rules_split_what_is_large_and_divides():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    specs = jax.tree.map(lambda s: s.spec, shardings([(".*", "fsdp")], mesh))
    assert specs["big"]["kernel"] == PartitionSpec("fsdp", None)
    assert specs["big"]["bias"] == specs["odd"]["kernel"] == PartitionSpec()
    rules = [(".*/bias", "fsdp(min_size=1)"), ("big/.*", (("data", "tensor"), "fsdp")), (".*", "replicate")]
    specs = jax.tree.map(lambda s: s.spec, shardings(rules, mesh))
    assert specs["big"] == {"kernel": PartitionSpec(("data", "tensor"), "fsdp"), "bias": PartitionSpec("fsdp")}
    nothing = shardings([], mesh)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(nothing))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("bg/.*", "fsdp"), "matches no parameter"),
        ((".*", "fspd"), "Unknown sharding rule 'fspd'. Did you mean 'fsdp'"),
        ((".*", "fsdp(minsize=3)"), "unknown key 'minsize'. Did you mean 'min_size'"),
        ((".*", "fsdp(3)"), "named arguments"),
        ((".*", ("fsdp",)), "has 1 entries, 'big/kernel' has the shape"),
        (("odd/.*", (None, "fsdp")), "4 devices cannot share 'odd/kernel'"),
        (("odd/.*", (None, "model")), "unknown mesh axis 'model'"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule, message):
    with pytest.raises(UserError, match=message):
        shardings([rule], sharding.make_mesh({"data": 2, "fsdp": 4}))
