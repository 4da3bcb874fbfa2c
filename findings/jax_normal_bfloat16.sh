#!/usr/bin/env bash
# jax.random.normal in bfloat16 is not what it is in float32, rounded. A million numbers have 128 different values, each
# as frequent as any other, of which the least is -2.89 and the largest 2.52; and their mean is -0.012, twelve times as
# far from 0 as chance allows. They are the inverse of the distribution at 128 equally spaced places that begin at -1
# and end short of 1, so that each value has a mirror image but for the least. uniform(-1, 1) has a mean of -0.008
# alike, and float16 1,024 values up to 3.18. Flax draws initial values so where param_dtype is bfloat16: wherever
# inputs are positive, as behind a ReLU, all outputs are shifted alike. Those of nn.Dense for 4,096 inputs of 1 are -1.2
# on average over the layer, which should be 0 with a spread of 1. The same drawn in float32 and then cast is right.
# Threefry and rbg are alike in this. Seen with jax 0.10.2 and 0.12.0.1, flax 0.12.8; $JAX names another version.
# prismer_jax's layers draw their parameters in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}" flax==0.12.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax")))
NUMBERS = 1_000_000
seen = {}
for impl in ("threefry2x32", "rbg"):
    key = jax.random.key(0, impl=impl)
    for name, dtype in (("bfloat16", jnp.bfloat16), ("float16", jnp.float16), ("float32, cast to bfloat16", jnp.float32)):
        x = jax.random.normal(key, (NUMBERS,), dtype)
        x = np.asarray(x.astype(jnp.bfloat16) if "cast" in name else x, np.float32)
        seen[impl, name] = (len(np.unique(x)), x.mean(), x.min(), x.max())
        print("normal, {}, {}: {} values, mean {:.4f}, from {:.3f} to {:.3f}".format(impl, name, *seen[impl, name]))
uniform = float(jax.random.uniform(jax.random.key(0), (NUMBERS,), jnp.bfloat16, -1, 1).astype(jnp.float32).mean())
print(f"uniform from -1 to 1, bfloat16: mean {uniform:.4f}")
sums = {}
for dtype in ("bfloat16", "float32"):
    kernel = nn.Dense(512, param_dtype=dtype).init(jax.random.key(1), jnp.ones((1, 4096)))["params"]["kernel"]
    sums[dtype] = float(kernel.astype(jnp.float32).sum(0).mean())
    print(f"flax, param_dtype={dtype}: 512 outputs of 4,096 inputs of 1 are {sums[dtype]:.3f} on average")
changed = abs(uniform + 0.0078) > 0.003 or sums["bfloat16"] > -0.5 or abs(sums["float32"]) > 0.2
for impl in ("threefry2x32", "rbg"):
    values, mean, low, high = seen[impl, "bfloat16"]
    changed |= values > 128 or mean > -0.009 or low < -3 or high > 2.6
    values, mean, low, high = seen[impl, "float32, cast to bfloat16"]
    changed |= values < 1000 or abs(mean) > 0.004 or low > -4 or high < 4
sys.exit("The behaviour has changed." if changed else 0)
P
