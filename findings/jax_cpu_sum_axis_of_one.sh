#!/usr/bin/env bash
# On a CPU, jaxlib 0.10.2 sums the products of two arrays along their last axis tens of times more slowly where another
# axis has the length one, be it a batch of one: (1, 3072, 2048) beside (3072, 2048), the same numbers in the same
# places. The sum of one array, its maximum and its squares are as fast in both shapes. Such sums are the derivatives
# of softmax and of every norm. It is XLA's library YNNPACK that makes them: without it, by a flag, both shapes take
# the same. jaxlib 0.11.0, 0.11.1 and 0.12.0.1 do not do this. prismer_jax trains without YNNPACK's sums on jaxlib 0.10
# (prismer_jax/runtime.py). Times are those of one process, as ratios; the least of 20 calls.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/sums.py" <<'P'
import importlib.metadata
import os
import sys
import time

import jax
import jax.numpy as jnp

x = jnp.ones((3072, 2048))
FUNCTIONS = {"x·y": lambda x, y: (x * y).sum(-1), "x": lambda x, y: x.sum(-1), "x²": lambda x, y: (x * x).sum(-1)}


def least(function, *arrays):
    program, times = jax.jit(function), []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        times.append(time.perf_counter() - start)
    return min(times)


ratios = {}
for name, function in FUNCTIONS.items():
    flat, one = least(function, x, x + 1), least(function, x[None], x[None] + 1)
    ratios[name] = one / flat
    print(f"sum of {name}: {1e3 * flat:.2f} ms, with an axis of one {1e3 * one:.2f} ms", end="; ")
print("jaxlib", importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", ""))
if os.environ.get("XLA_FLAGS"):
    changed = ratios["x·y"] > 4
else:
    changed = ratios["x·y"] < 10 or ratios["x"] > 4 or ratios["x²"] > 4
sys.exit("The behaviour has changed." if changed else 0)
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python sums.py
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce venv/bin/python sums.py
