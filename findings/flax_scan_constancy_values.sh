#!/usr/bin/env bash
# flax.linen.scan's check_constancy_invariants=False, documented as a way to save a tracing step where nothing is
# broadcast out of the loop, also changes every initial value that the scanned module draws: the same module, key and
# names give other parameters, though the layers' results from given parameters are the same to the bit. What is drawn
# outside of the loop stays the same. The generator counts how often the body asks for a key, and the check has traced
# it once more before. Seen with flax 0.12.8 and jax 0.10.2. prismer_jax keeps the check (towers/layers.py:stack), so
# that what was measured from a seed holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/scan.py" <<'P'
import importlib.metadata
import sys

import flax.linen as nn
import jax
import numpy as np


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x), None


class Model(nn.Module):
    check: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="before")(x)
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            check_constancy_invariants=self.check,
        )
        return layers(name="layers")(x)[0]


x = np.ones((2, 4), np.float32)
checked, unchecked = Model(True), Model(False)
ours, theirs = (dict(model.init(jax.random.key(0), x)["params"]) for model in (checked, unchecked))
names = jax.tree.map(lambda a: a.shape, ours) == jax.tree.map(lambda a: a.shape, theirs)
before, layers = (
    all(jax.tree.leaves(jax.tree.map(np.array_equal, ours[part], theirs[part]))) for part in ("before", "layers")
)
results = np.array_equal(checked.apply({"params": ours}, x), unchecked.apply({"params": ours}, x))
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("flax", "jax", "jaxlib")))
print(f"The same names and shapes: {names}. The same results from the same parameters: {results}.")
print(f"With the check and without, one key: the layer before the loop is the same: {before}; those in it: {layers}.")
sys.exit(0 if names and results and before and not layers else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python scan.py
