#!/usr/bin/env bash
# A training step of jax.pmap ends with jax.lax.pmean(gradients), since each device has the gradient of its own part of
# the batch. JAX advises to move such steps to jax.shard_map, where the same function runs without a word and returns
# gradients that are as many times too large as there are devices. There, the gradient for parameters that all devices
# have alike is summed over the devices by jax.grad itself, and the mean of equal sums is that sum. AdamW hides it, as
# its steps do not depend on the gradient's scale; plain SGD trains with a learning rate 8 times as high, and clipping
# by the global norm clips at an eighth of the norm. With check_vma=False, which is said to turn off a check, the
# gradients are those of pmap, and so they are where the loss, and not the gradient, is averaged by pmean. Seen with jax
# 0.10.2 and 0.12.0.1 on eight virtual CPU devices; $JAX names another version. prismer_jax takes the gradient of the
# whole batch's loss within jit, where the compiler adds up (prismer_jax/training/step.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}" optax==0.2.8 numpy==2.4.6
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "optax")), len(jax.devices()), "devices")
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x, y, weights = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((32, 4), (32,), (4,))))


def loss(weights, x, y):
    return jnp.mean((x @ weights - y) ** 2)


def gradients(weights, x, y):
    return jax.lax.pmean(jax.grad(loss)(weights, x, y), "data")


def of_mean_loss(weights, x, y):
    return jax.grad(lambda weights: jax.lax.pmean(loss(weights, x, y), "data"))(weights)


def mapped(function, **options):
    whole, parts = PartitionSpec(), PartitionSpec("data")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(whole, parts, parts), out_specs=whole, **options))


split = x.reshape(8, 4, 4), y.reshape(8, 4)
results = {
    "jax.pmap, gradients averaged": jax.pmap(gradients, "data", in_axes=(None, 0, 0))(weights, *split)[0],
    "jax.shard_map, gradients averaged": mapped(gradients)(weights, x, y),
    "jax.shard_map(check_vma=False), gradients averaged": mapped(gradients, check_vma=False)(weights, x, y),
    "jax.shard_map, loss averaged": mapped(of_mean_loss)(weights, x, y),
}
true = np.asarray(jax.grad(loss)(weights, x, y))
factors = []
for name, result in results.items():
    factor = np.asarray(result) / true
    factors.append(float(factor.mean()) if np.ptp(factor) < 1e-3 else float("nan"))
    step = optax.adamw(1e-3)
    step = step.update(jnp.asarray(np.asarray(result)), step.init(weights), weights)[0]
    print(f"{name}: {factors[-1]:.3f} times the batch's gradient; AdamW's first step {np.asarray(step).round(6)}")
changed = not np.allclose(factors, [1, 8, 1, 1], atol=1e-2)
sys.exit("The behaviour has changed." if changed else 0)
P
