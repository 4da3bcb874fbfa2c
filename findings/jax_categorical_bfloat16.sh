#!/usr/bin/env bash
# jax.random.categorical draws its noise in the type of the logits: of bfloat16 there are 128 values, the largest is
# drawn many times among a vocabulary, and the first of equals wins. Of 4096 equally likely tokens more than 99% of the
# draws are among the first quarter. bernoulli with a bfloat16 p of 0.001 is true eight times as often as it says.
# prismer_jax/decode samples from float32 logits, whatever the model computes in.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy")))
key = jax.random.key(0)
shares = {}
for dtype in (jnp.float32, jnp.bfloat16):
    draws = jax.random.categorical(key, jnp.zeros(4096, dtype), shape=(20_000,))
    quarters = np.bincount(np.asarray(draws) // 1024, minlength=4) / 20_000
    frequency = float(jax.random.bernoulli(key, jnp.asarray(0.001, dtype), (1_000_000,)).mean())
    shares[dtype] = quarters[0], frequency
    print(f"{dtype.__name__}: share of each quarter of 4096 equal logits {quarters.round(4).tolist()},", end=" ")
    print(f"bernoulli(0.001) is true with frequency {frequency:.4f}")
(share, frequency), (half_share, half_frequency) = shares[jnp.float32], shares[jnp.bfloat16]
right = 0.23 < share < 0.27 and 0.0008 < frequency < 0.0012
sys.exit(0 if right and half_share > 0.99 and half_frequency > 0.006 else "The behaviour has changed.")
P
