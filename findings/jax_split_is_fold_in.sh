#!/usr/bin/env bash
# jax.random.split(key, n)[i] is jax.random.fold_in(key, i), bit for bit, by Threefry (the default) and RBG, since
# jax_threefry_partitionable is the default. So a training that splits a key, for initial values and for data, and also
# folds the step into it, for dropout, draws in its first two steps with the keys of the other two. JAX's own checker,
# jax_debug_key_reuse, finds a key that is split twice, and says nothing here: fold_in does not use a key up, and the
# two keys that are equal count as two. Nor does a longer split help: it begins with the keys of the shorter one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/keys.py" <<'P'
import importlib.metadata
import sys

import jax
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")))


def draws(impl: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the keys of a split draw, and those of the first steps, under the checker of reused keys."""
    key = jax.random.key(0, impl=impl)
    steps = [jax.random.fold_in(key, step) for step in range(3)]
    parts = jax.random.split(key, 3)
    return tuple(np.stack([jax.random.normal(k, (4,)) for k in keys]) for keys in (parts, steps))


with jax.debug_key_reuse(True):
    results = {impl: draws(impl) for impl in ("threefry2x32", "rbg")}
    try:
        key = jax.random.key(0)
        jax.random.split(key), jax.random.split(key)
        checker = "nothing"
    except jax.errors.KeyReuseError as error:
        checker = type(error).__name__
with jax.threefry_partitionable(False):
    before = np.array_equal(*draws("threefry2x32"))
for impl, (parts, steps) in results.items():
    print(f"{impl}: split(key, 3) and fold_in(key, 0 to 2) draw the same: {np.array_equal(parts, steps)}")
print("The first of them:", results["threefry2x32"][0][0], "and", results["threefry2x32"][1][0])
print(f"The checker said nothing about these; about two splits of a key it says: {checker}")
print("The same with jax_threefry_partitionable=False:", before)
same = all(np.array_equal(*pair) for pair in results.values())
sys.exit(0 if same and checker == "KeyReuseError" and not before else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python keys.py
