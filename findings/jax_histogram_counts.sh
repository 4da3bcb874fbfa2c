#!/usr/bin/env bash
# jnp.histogram counts in the type of the numbers that it is given, one by one: the counts of bfloat16 stop at 256,
# those of float16 at 2,048 and those of float32 at 16,777,216. So the histogram of 100,000 normal activations of
# bfloat16 is flat, 256 in each bin but the rarest, and with density=True the density of a uniform distribution, which
# integrates to 1; of 20 million activations of float32 behind a ReLU, of which nine tenths are zero, the bin of the
# zeros lacks more than a million. Thresholds, entropies and calibrations that are taken from it are of another
# distribution. Nothing is said. NumPy counts right, and so do jnp.histogramdd, whose counts are int32, jnp.histogram of
# bytes up to 16,777,216, and jnp.histogram of bfloat16 with weights of ones in float32. Seen with jax 0.10.2 and
# 0.12.0.1 on a CPU; $JAX names another version. prismer_jax draws its histograms with NumPy
# (prismer_jax/report/evaluation.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
version=${JAX:-0.10.2}
"$folder/venv/bin/pip" install -q --disable-pip-version-check "jax==$version" "jaxlib==$version" numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
edges = np.arange(-4.0, 4.5)  # exact in every type


def told(counts) -> list[int]:
    return [int(count) for count in counts]


activations = jnp.asarray(np.random.default_rng(0).standard_normal(100_000), jnp.bfloat16)
true = told(np.histogram(np.asarray(activations, np.float32), edges)[0])
print("100,000 normal numbers of bfloat16 in bins of width 1, by NumPy:", true)
seen = {}
for dtype in ("bfloat16", "float16", "float32"):
    numbers = activations.astype(dtype)  # every one of them is exact in each
    seen[dtype] = told(jnp.histogram(numbers, jnp.asarray(edges, dtype))[0])
    print(f"by jnp.histogram, as {dtype}: {seen[dtype]}")
density = np.asarray(jnp.histogram(activations, jnp.asarray(edges, "bfloat16"), density=True)[0], np.float64)
print(f"its density, as bfloat16: {density.round(3).tolist()}, which adds up to {density.sum():.3f}")
weighted = told(jnp.histogram(activations, jnp.asarray(edges, "bfloat16"), weights=jnp.ones(100_000))[0])
several = told(jnp.histogramdd(activations[:, None], [jnp.asarray(edges, "bfloat16")])[0])
print(f"as bfloat16 with weights of 1 in float32: {weighted}; by jnp.histogramdd: {several}")
sparse = np.zeros(20_000_000, np.float32)
sparse[::10] = 1
large = told(jnp.histogram(jnp.asarray(sparse), 2)[0])
true_large = told(np.histogram(sparse, 2)[0])
print(f"20 million numbers of float32, 18 million of them 0: by NumPy {true_large}, by jnp {large}")
expected = {name: [min(count, end) for count in true] for name, end in (("bfloat16", 256), ("float16", 2048))}
changed = seen != {**expected, "float32": true} or weighted != true or several != true
changed |= large != [2**24, 2_000_000] or not 0.99 < density.sum() < 1.01 or len(set(density[1:7].tolist())) > 1
sys.exit("The behaviour has changed." if changed else 0)
P
