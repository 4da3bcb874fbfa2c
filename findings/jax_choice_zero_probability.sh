#!/usr/bin/env bash
# jax.random.choice without replacement returns items of probability 0 where more are drawn than have a positive one,
# say hard negatives with the right answer masked out by p; NumPy raises a ValueError there. It takes the largest of
# log(p) plus noise, among which -inf comes last but does come.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import collections
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy")))
p = [0.5, 0.5, 0.0, 0.0]


def counts(size: int) -> dict[int, int]:
    """Returns how often each item is drawn in 200 draws of `size` items."""
    keys = jax.random.split(jax.random.key(0), 200)
    draws = jax.vmap(lambda key: jax.random.choice(key, 4, (size,), replace=False, p=jnp.array(p)))(keys)
    return dict(sorted(collections.Counter(np.asarray(draws).ravel().tolist()).items()))


two, three = counts(2), counts(3)
print(f"p = {p}, 200 draws of 2 items: {two}, of 3 items: {three}")
try:
    message = f"draws {np.random.default_rng(0).choice(4, 3, replace=False, p=p)}"
except ValueError as error:
    message = f"ValueError: {error}"
print("numpy:", message)
changed = two != {0: 200, 1: 200} or sum(three.get(item, 0) for item in (2, 3)) != 200 or "ValueError" not in message
sys.exit("The behaviour has changed." if changed else 0)
P
