#!/usr/bin/env bash
# jnp.cumsum keeps the type of small integers, where NumPy's and JAX's own sum widen it: positions of tokens as the
# cumulative sum of an int8 attention mask are negative from the 129th on, where a table of position embeddings gives
# its row 0, and those of a uint8 mask begin again at 0 from the 257th on. A bool mask is counted right. The masks of
# prismer_jax are bool or int32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy")))
table = jnp.arange(512)  # in place of position embeddings: row i holds i
results = {}
for dtype in ("bool", "int8", "uint8", "int32"):
    mask = np.ones(300, dtype)
    positions = jnp.cumsum(jnp.asarray(mask)) - 1
    results[dtype] = [int(table[positions[i]]) for i in (127, 128, 255, 256, 299)]
    print(f"{dtype} mask of 300 ones: rows read for tokens 127, 128, 255, 256, 299: {results[dtype]},", end=" ")
    print(f"last cumulative sum {int(jnp.cumsum(jnp.asarray(mask))[-1])}, of NumPy {np.cumsum(mask)[-1]},", end=" ")
    print(f"jnp.sum {int(jnp.sum(jnp.asarray(mask)))}")
right = [127, 128, 255, 256, 299]
changed = results["bool"] != right or results["int32"] != right
changed |= results["int8"] != [127, 0, 0, 0, 43] or results["uint8"] != [127, 128, 255, 0, 43]
sys.exit("The behaviour has changed." if changed else 0)
P
