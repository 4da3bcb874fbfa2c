import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from prismer_jax import sharding
from prismer_jax.towers import fused_attention, layers

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


def plain(q, k, v):
    return layers.attend(q, layers.Keys(k, v))


@pytest.mark.parametrize(
    ("batch", "t", "s", "heads", "channels"),
    [(2, 200, 200, 3, 64), (1, 64, 300, 2, 80), (1, 256, 256, 2, 72), (1, 700, 700, 1, 64)],
)
def test_values_and_gradients_are_those_of_the_weights_in_memory(batch, t, s, heads, channels):
    """Also where the last block is filled up, and where there are several blocks."""
    given = drawn(batch, t, s, heads, channels)
    fused = value_and_gradients(functools.partial(fused_attention.attend, interpret=True), *given)
    for ours, expected in zip(fused, value_and_gradients(plain, *given), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_bfloat16_is_summed_in_float32():
    q, k, v, _ = drawn(1, 600, 600, 2, 64, jnp.bfloat16)
    expected = plain(*(x.astype(jnp.float32) for x in (q, k, v)))
    fused = jax.jit(functools.partial(fused_attention.attend, interpret=True))(q, k, v)
    assert fused.dtype == jnp.bfloat16
    errors = [np.abs(np.asarray(x, np.float32) - expected).max() for x in (fused, plain(q, k, v))]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}])
def test_devices_compute_their_rows_and_heads(axes):
    """With 4 heads, an axis `tensor` of 8 divides none."""
    mesh = sharding.make_mesh(axes)
    given = drawn(8, 130, 130, 4, 64)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        placed = jax.device_put(given, place)
        fused = value_and_gradients(functools.partial(fused_attention.attend, interpret=True), *placed)
        assert axes == {"tensor": 8} or not fused[0].sharding.is_fully_replicated
    for ours, expected in zip(fused, value_and_gradients(plain, *given), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def kernels(mesh, queries=600, keys=600, mask=None, **options):
    q, k, v, _ = drawn(4, queries, keys, 2, 64)
    with jax.sharding.use_abstract_mesh(mesh) if mesh else contextlib.nullcontext():
        traced = jax.jit(lambda q, k, v: layers.attend(q, layers.Keys(k, v, mask), **options)).trace(q, k, v)
    return str(traced.jaxpr).count("pallas_call")


def test_it_is_a_kernel_on_a_tpu_alone():
    assert kernels(TPU) == 1
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
    assert kernels(TPU, mask=np.ones((600, 600), bool)) == 0
    assert kernels(TPU, cap=50.0) == 0
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
