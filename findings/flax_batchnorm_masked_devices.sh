#!/usr/bin/env bash
# flax's BatchNorm counts only the positions that its mask names, and with axis_name it takes its statistics over all
# devices. Both together are wrong where the devices have unequal numbers of them, as padding makes: each device's mean
# counts alike, be it of one position or of a thousand. A device whose part of the batch is padding alone, as in the
# last batch of an epoch, has the mean of nothing, and NaN becomes the running mean of every device. Neither raises. One
# device with the whole batch is right, and so are many where their numbers are equal. Seen with flax 0.12.8 and jax
# 0.10.2. prismer_jax has a BatchNorm of its own, over the global batch and without a mask (prismer_jax/towers/stem.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "$folder/venv/bin/python" - <<'P'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

print("flax", flax.__version__, "jax", jax.__version__, "on", len(jax.devices()), "devices")
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows, whole = PartitionSpec("data"), PartitionSpec()
x = jnp.arange(8.0).reshape(8, 1) ** 2  # 0, 1, 4, 9 on one device, 16, 25, 36, 49 on the other
variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)


def running_mean(x, mask, axis_name=None):
    norm = nn.BatchNorm(use_running_average=False, momentum=0.0, axis_name=axis_name)
    return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])[1]["batch_stats"]["mean"]


split = jax.shard_map(lambda x, mask: running_mean(x, mask, "data"), mesh=mesh, in_specs=(rows, rows), out_specs=whole)
seen = {}
for name, counts in {"4 and 4": (4, 4), "2 and 2": (2, 2), "4 and 1": (4, 1), "4 and 0": (4, 0)}.items():
    mask = jnp.concatenate([jnp.arange(4) < count for count in counts])[:, None]
    true = float(np.asarray(x)[np.asarray(mask)].mean())
    seen[name] = true, float(running_mean(x, mask)[0]), float(split(x, mask)[0])
    print(f"{name} positions count: their mean is {true}, on one device {seen[name][1]}, on two {seen[name][2]}")
expected = {"4 and 4": (17.5,) * 3, "2 and 2": (10.5,) * 3, "4 and 1": (6.0, 6.0, 9.75), "4 and 0": (3.5, 3.5, np.nan)}
np.testing.assert_allclose([*seen.values()], [*expected.values()], rtol=1e-6, err_msg="The behaviour has changed.")
P
