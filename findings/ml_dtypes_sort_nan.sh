#!/usr/bin/env bash
# NumPy sorts NaN behind all numbers, but not in arrays of ml_dtypes, such as the bfloat16 arrays that JAX hands over.
# There NaN is neither smaller nor larger than anything, and a single one undoes the sort of a thousand numbers: by
# np.sort with kind="stable" nearly all of them come to another place, and by np.argsort(-scores, kind="stable") half of
# the hundred largest are not among the first hundred, or more. By the default kind some are in another place, and
# nearly all where NaN stood in the middle. np.median is mostly a number, another one than that of the numbers alone,
# where it should be NaN. Nothing is said. The same numbers as float16 or float32 are sorted right, and so is the array
# of bfloat16 by jnp.sort. Seen with ml_dtypes 0.6.0 and NumPy 2.4.6. prismer_jax ranks by scores of float32
# (prismer_jax/decode/ranking.py, evaluators/retrieval.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("ml_dtypes", "numpy", "jax")))
print("1,001 scores, one of them NaN:")
seen = {}
for place in (100, 500, 700):
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.float16, np.float32):
        scores = np.random.default_rng(3).standard_normal(1001)
        scores[place] = np.nan
        scores = scores.astype(dtype)
        exact = scores.astype(np.float32)  # the same numbers, NaN in the same place
        moved = []
        for kind in ("stable", "quicksort"):
            ordered = np.sort(scores, kind=kind).astype(np.float32)
            moved.append(int((ordered[~np.isnan(ordered)] != np.sort(exact)[:-1]).sum()))
        first, right = (set(np.argsort(-x, kind="stable")[:100].tolist()) for x in (scores, exact))
        middle = float(np.median(scores))
        seen[scores.dtype.name, place] = (*moved, len(right - first), middle)
        print(
            f"{scores.dtype.name}, NaN at {place}: sorted, {moved[0]} numbers are in another place by kind='stable' "
            f"and {moved[1]} by the default; argsort (stable) misses {len(right - first)} of the 100 largest; "
            f"the median is {middle:.4f}, that of the numbers alone {np.nanmedian(exact):.4f}"
        )
        if dtype == ml_dtypes.bfloat16:
            by_jax = np.asarray(jnp.sort(jnp.asarray(scores)), np.float32)
            seen["jnp", place] = np.array_equal(by_jax, np.sort(exact), equal_nan=True)
            print(f"jnp.sort of these is {'right' if seen['jnp', place] else 'wrong'}")
changed = not all(seen["jnp", place] for place in (100, 500, 700))
for (name, place), of in seen.items():
    if name in ("float16", "float32"):
        changed |= of[:3] != (0, 0, 0) or not np.isnan(of[3])
    elif name == "bfloat16":
        changed |= of[0] < 900 or of[1] == 0 or of[2] < 40 or (place != 500 and np.isnan(of[3]))
    elif name == "float8_e5m2":
        changed |= of[0] < 400 or of[2] < 20
sys.exit("The behaviour has changed." if changed else 0)
P
