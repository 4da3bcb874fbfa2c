import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from prismer_jax import sharding
from prismer_jax.errors import UserError


def test_mesh_takes_the_rest_and_is_auto():
    mesh = sharding.make_mesh({"data": -1, "fsdp": 4})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sharding.make_mesh().shape["data"] == jax.device_count() == 8
    assert sharding.make_mesh({"tensor": 2, "data": 1}, jax.devices()[:2]).shape["tensor"] == 2


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"data": 0}, "at least 1"),
        ({"data": 2.0}, "at least 1"),
        ({"dat": 8}, "Unknown mesh axis 'dat'. Did you mean 'data'"),
    ],
)
def test_mesh_that_does_not_fit_is_refused(axes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(axes)


def test_batches_that_the_devices_do_not_divide_are_refused():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    sharding.check_batch(32, mesh, parts=4)
    for args, message in [
        ((12,), "12 cannot be shared by 8 devices; use 8 or 16"),
        ((3,), "use 8."),
        ((-1,), "use 8."),
        ((8, 0), "accumulate=0: must be at least 1"),
        ((8, -4), "accumulate=-4: must be at least 1"),
        ((40, 2), "40 in 2 accumulated parts cannot be shared by 8 devices; use 32 or 48"),
    ]:
        with pytest.raises(UserError, match=message):
            sharding.check_batch(args[0], mesh, *args[1:])


class Net(nn.Module):
    """A convolution, because explicit axes would break it, and an activation whose sharding is seen from outside."""

    @nn.compact
    def __call__(self, x):
        x = sharding.constrain(nn.Conv(64, (3, 3))(x))
        jax.debug.inspect_array_sharding(x, callback=SEEN.append)
        return nn.Dense(512)(x.reshape(len(x), -1))


SEEN = []


def test_parameters_activations_and_the_optimiser_really_are_split():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    net, x, tx = Net(), np.ones((16, 8, 8, 3), np.float32), optax.adam(1e-3)
    with jax.set_mesh(mesh):

        def init(rng):
            variables = net.init(rng, x)
            return {**variables, "opt": tx.init(variables["params"])}

        like = sharding.placed(jax.eval_shape(init, jax.random.key(0)), [(".*", "fsdp")], mesh)
        state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))(jax.random.key(0))
        kernel, opt = state["params"]["Dense_0"]["kernel"], state.pop("opt")  # [4096, 512]
        assert {s.data.shape for s in kernel.addressable_shards} == {(1024, 512)}
        assert opt[0].mu["Dense_0"]["kernel"].sharding == kernel.sharding
        assert opt[0].count.sharding.is_fully_replicated

        batch = jax.device_put(x, sharding.batch_sharding(mesh))
        SEEN.clear()
        out = jax.jit(net.apply)(state, batch)
    assert SEEN[0].shard_shape((16, 8, 8, 64)) == (2, 8, 8, 64)
    np.testing.assert_allclose(out, net.apply(jax.device_get(state), x), rtol=2e-4, atol=2e-5)


def test_constrain_is_inert_without_a_mesh_and_inside_shard_map():
    np.testing.assert_array_equal(jax.jit(sharding.constrain)(jnp.arange(3)), np.arange(3))
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        split = PartitionSpec(("data", "fsdp", "tensor"))
        mapped = jax.jit(jax.shard_map(lambda x: sharding.constrain(x) * 2, in_specs=split, out_specs=split))
        np.testing.assert_array_equal(mapped(jnp.arange(8)), 2 * np.arange(8))


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    sharding.initialize_distributed()
    assert jax.process_count() == 1
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        sharding.initialize_distributed(True)
