import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from prismer_jax import sharding
from prismer_jax.towers import fused_attention, layers
from prismer_jax.towers.causal_lm import CausalLM

# A TPU's memories and transfers in between, where what is read before it is written is NaN.
TPU_MEMORY = pltpu.InterpretParams(uninitialized_memory="nan")
TPU = AbstractMesh(
    (4, 1, 2), sharding.AXES, (AxisType.Auto,) * 3, abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu")
)


def drawn(batch, t, s, heads, channels, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, t, heads, channels), *2 * [(batch, s, heads, channels)], (batch, t, heads, channels)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attend, q, k, v, weights):
    def weighted(*qkv):
        out = attend(*qkv)
        return (out.astype(jnp.float32) * weights).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def plain(q, k, v, mask=None, cap=0.0):
    return layers.attend(q, layers.Keys(k, v, mask), cap=cap)


@pytest.mark.parametrize(
    ("batch", "t", "s", "heads", "channels"),
    [(2, 200, 200, 3, 64), (1, 64, 300, 2, 80), (1, 256, 256, 2, 72), (1, 700, 700, 1, 64)],
)
def test_values_and_gradients_are_those_of_the_weights_in_memory(batch, t, s, heads, channels):
    """Also where the last block is filled up, and where there are several blocks."""
    given = drawn(batch, t, s, heads, channels)
    fused = value_and_gradients(functools.partial(fused_attention.attend, interpret=TPU_MEMORY), *given)
    for ours, expected in zip(fused, value_and_gradients(plain, *given), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def masked(batch, t, s, rng):
    """Causal, of two samples a row, the second of another length in each, and padding that sees nothing."""
    ends = rng.integers([s // 4, s // 2], [s // 3, s], (batch, 2))
    sample = (np.arange(s) >= ends[:, :1]) + (np.arange(s) >= ends[:, 1:]).astype(int)
    same = sample[:, s - t :, None] == sample[:, None]
    return np.tri(t, s, s - t, dtype=bool) & same & (sample < 2)[:, None]


@pytest.mark.parametrize(
    ("batch", "t", "s", "heads", "groups", "cap"),
    [
        pytest.param(2, 600, 600, 4, 2, 0.0, marks=pytest.mark.slow),
        (1, 1100, 1100, 2, 1, 0.0),
        (1, 600, 600, 1, 1, 2.0),
        (2, 130, 600, 2, 2, 0.0),
    ],
)
def test_masks_and_shared_keys_are_those_of_the_weights_in_memory(batch, t, s, heads, groups, cap):
    """What nobody of a block sees is not computed. A query that sees nothing has a finite value, of no consequence."""
    q, k, v, weights = drawn(batch, t, s, heads, 64)
    k, v, mask = k[:, :, :groups], v[:, :, :groups], masked(batch, t, s, np.random.default_rng(0))
    sees = mask.any(-1)[..., None, None]
    assert not sees.all()
    fused = functools.partial(fused_attention.attend, mask=mask, cap=cap, interpret=TPU_MEMORY)
    fused = value_and_gradients(fused, q, k, v, weights * sees)
    expected = value_and_gradients(functools.partial(plain, mask=mask, cap=cap), q, k, v, weights * sees)
    assert np.isfinite(fused[0]).all()
    for ours, theirs in zip((fused[0] * sees, *fused[1:]), (expected[0] * sees, *expected[1:]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())  # the first keys' are large


@pytest.mark.parametrize(
    ("length", "most", "expected"),
    [
        (260, 1024, (384, 384)),
        (964, 1024, (1024, 1024)),
        (1240, 1024, (640, 1280)),
        (4096, 512, (512, 4096)),
        (4128, 512, (384, 4224)),
        (1300, 512, (512, 1536)),
    ],
)
def test_blocks_are_large_and_filled_up_little(length, most, expected):
    assert fused_attention._blocks(length, most) == expected


def test_sequences_of_a_row_have_rows_of_their_own():
    """Language models have an axis for them, [b k t h d], also where there is but one; masks broadcast over it."""
    q, k, v, _ = (x.reshape(2, 2, *x.shape[1:]) for x in drawn(4, 140, 140, 2, 64))
    mask = masked(2, 140, 140, np.random.default_rng(0))[:, None]
    fused = fused_attention.attend(q, k, v, mask, interpret=TPU_MEMORY)
    expected = plain(q, k, v, mask)
    sees = mask.any(-1)[..., None, None]
    np.testing.assert_allclose(fused * sees, expected * sees, atol=2e-6)


def test_bfloat16_is_summed_in_float32():
    q, k, v, _ = drawn(1, 600, 600, 2, 64, jnp.bfloat16)
    expected = plain(*(x.astype(jnp.float32) for x in (q, k, v)))
    fused = jax.jit(functools.partial(fused_attention.attend, interpret=TPU_MEMORY))(q, k, v)
    assert fused.dtype == jnp.bfloat16
    errors = [np.abs(np.asarray(x, np.float32) - expected).max() for x in (fused, plain(q, k, v))]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_devices_compute_their_rows_and_heads(axes, groups):
    """With 4 heads, an axis `tensor` of 8 divides none; the heads of keys, of a mask's, may be fewer or one."""
    mesh = sharding.make_mesh(axes)
    q, k, v, weights = drawn(8, 130, 130, 4, 64)
    k, v = k[:, :, :groups], v[:, :, :groups]
    mask = np.tri(130, dtype=bool)[None].repeat(8, 0) if groups else None
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        placed = jax.device_put((q, k, v, weights), place)
        fused = value_and_gradients(functools.partial(fused_attention.attend, mask=mask, interpret=True), *placed)
        assert axes == {"tensor": 8} or not fused[0].sharding.is_fully_replicated
    expected = value_and_gradients(functools.partial(plain, mask=mask), q, k, v, weights)
    for ours, theirs in zip(fused, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * 4 / (groups or 4))  # of shared keys, sums over heads


def kernels(mesh, queries=600, keys=600, mask=None, cached=0, **options):
    q, k, v, _ = drawn(4, queries, keys, 2, 64)
    more = [layers.Keys(k, v)] * cached
    with jax.sharding.use_abstract_mesh(mesh) if mesh else contextlib.nullcontext():
        traced = jax.jit(lambda q, k, v: layers.attend(q, layers.Keys(k, v, mask), *more, **options)).trace(q, k, v)
    return str(traced.jaxpr).count("pallas_call")


def test_it_is_a_kernel_on_a_tpu_alone():
    assert kernels(TPU) == 1
    assert kernels(TPU, cap=50.0) == 1
    long = layers.FUSED_MASKED
    assert kernels(TPU, long, long, np.ones((long, long), bool)) == 1
    assert kernels(TPU.update(abstract_device=None)) == 0
    assert kernels(sharding.make_mesh().abstract_mesh) == 0


@pytest.mark.parametrize(("devices", "expected"), [(1, 1), (4, 0)])
def test_without_a_mesh_only_one_device_has_a_kernel(monkeypatch, devices, expected):
    """Experts label batches that several devices share, without one; XLA cannot split a kernel among them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert kernels(None) == expected


def test_what_the_kernel_does_not_do_is_computed_as_elsewhere():
    assert kernels(TPU, keys=layers.FUSED - 1) == 0
    assert kernels(TPU, queries=layers.FUSED - 1) == 0  # a resampler's few queries: by plan a step moved more with it
    assert kernels(TPU, mask=np.ones((600, 600), bool)) == 0  # PaliGemma's 1,057 tokens gain nothing, by plan
    assert kernels(TPU, cached=1) == 0
    assert kernels(TPU, bias=jnp.zeros((2, 600, 600))) == 0
    assert kernels(TPU, dropout=lambda probs: probs) == 0


@pytest.mark.parametrize(
    ("options", "mutable", "expected"),
    [({}, False, 1), ({}, ["intermediates"], 0), ({"dropout": 0.1, "deterministic": False}, False, 0)],
)
def test_attention_whose_weights_are_looked_at_or_dropped_is_no_kernel(options, mutable, expected):
    module, x = layers.Attention(64, 2, **options), jnp.zeros((4, 600, 64))

    def apply(params, x):
        bound = module.bind({"params": params}, rngs={"dropout": jax.random.key(0)}, mutable=mutable)
        return bound(x, bound.keys(x))

    with jax.sharding.use_abstract_mesh(TPU):
        params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, method=lambda m, x: m(x, m.keys(x))))
        assert str(jax.jit(apply).trace(params["params"], x).jaxpr).count("pallas_call") == expected


@pytest.mark.parametrize(
    ("fields", "random", "mutable", "expected"),
    [
        ({}, {}, False, 1),
        ({"window": 64, "attention_cap": 50.0, "branch_dropout": 0.1}, {"dropout": 0}, False, 1),
        ({"dropout": 0.1}, {}, False, 1),
        ({"dropout": 0.1}, {"dropout": 0}, False, 0),
        ({}, {}, ["intermediates"], 0),
    ],
)
def test_language_models_have_it_too(fields, random, mutable, expected):
    """As they are trained, and as they read a prompt; not where their weights drop out or are looked at."""
    model, long = CausalLM(64, 3, 4, 2, 64, 100, **fields), layers.FUSED_MASKED
    positions, mask = jnp.arange(long)[None, None].repeat(4, 0), np.tri(long, dtype=bool)[None, None].repeat(4, 0)
    masks = {"new": (mask, mask) if model.window else mask}
    x, random = jnp.zeros((4, 1, long, 64)), {name: jax.random.key(seed) for name, seed in random.items()}
    with jax.sharding.use_abstract_mesh(TPU):
        variables = jax.eval_shape(model.init, jax.random.key(0), x, positions, masks)
        variables = {"params": variables["params"]}
        apply = functools.partial(model.apply, rngs=random, mutable=mutable)
        traced = jax.jit(apply).trace(variables, x, positions, masks)
    assert str(traced.jaxpr).count("pallas_call") == expected
