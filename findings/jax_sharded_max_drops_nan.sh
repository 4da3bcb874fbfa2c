#!/usr/bin/env bash
# The maximum of an array with a NaN in it is NaN in JAX, as in NumPy, but not where the array is split over devices of
# a CPU: there jnp.max and jnp.min leave out a device whose part has a NaN, with all its numbers, and of nothing but
# NaNs the maximum is -inf, the minimum inf, and jnp.linalg.norm(ord=inf) is 0. jax.lax.pmax and pmin do alike. Sums and
# argmax see the NaN, also where it is split. Each device's own maximum is NaN; what loses it is the exchange between
# them. So a guard such as jnp.abs(gradient).max() < 1e3 stops a training on one device and lets it go on with eight,
# and a test of it on virtual devices passes. Seen with jax 0.10.2 and 0.12.0.1. prismer_jax guards with no maximum.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$folder/venv/bin/python" - <<'P'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

print("jax", jax.__version__)
FUNCTIONS = {
    "max": jnp.max,
    "min": jnp.min,
    "norm(ord=inf)": lambda x: jnp.linalg.norm(x, ord=jnp.inf),
    "sum": jnp.sum,
    "argmax": jnp.argmax,
}
one_nan = np.arange(16.0, dtype=np.float32)
one_nan[14] = np.nan
seen = {}
for count in (1, 8):
    mesh = Mesh(np.array(jax.devices()[:count]), ("device",))
    by_device = PartitionSpec("device")
    for what, array in (("0 to 15, NaN in place of 14", one_nan), ("16 NaNs", np.full_like(one_nan, np.nan))):
        x = jax.device_put(array, NamedSharding(mesh, by_device))
        found = {name: float(jax.jit(function)(x)) for name, function in FUNCTIONS.items()}
        specs = dict(in_specs=by_device, out_specs=PartitionSpec())
        pmax = jax.shard_map(lambda y: jax.lax.pmax(y.max(), "device"), mesh=mesh, **specs)
        found["pmax of each one's max"] = float(jax.jit(pmax)(x))
        print(f"{what}; devices: {count}:", ", ".join(f"{name} {value}" for name, value in found.items()))
        seen[what[0], count] = list(found.values())
nan, inf = np.nan, np.inf
expected = {("0", 8): [13, 0, 13, nan, 14, 13], ("1", 8): [-inf, inf, 0, nan, 0, -inf]}
expected |= {("0", 1): [nan, nan, nan, nan, 14, nan], ("1", 1): [nan, nan, nan, nan, 0, nan]}
changed = any(not np.array_equal(seen[case], expected[case], equal_nan=True) for case in expected)
sys.exit("The behaviour has changed." if changed else 0)
P
