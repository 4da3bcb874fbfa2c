#!/usr/bin/env bash
# JAX wraps a Python number into the type of the array that it meets, without a word: with label maps of uint8, `labels
# == -100` finds the class 156, `labels < 300` is almost nowhere true, and clip(labels, 0, 300) cuts at 44. NumPy 2
# compares with the number itself, clips right, and raises where it cannot. Maps of prismer_jax are compared with 0 to
# 255 only.
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
labels = np.array([0, 44, 156, 200, 255], np.uint8)
calls = {
    "labels == -100": lambda xp, x: x == -100,
    "labels == -1": lambda xp, x: x == -1,
    "labels < 300": lambda xp, x: x < 300,
    "clip(labels, 0, 300)": lambda xp, x: xp.clip(x, 0, 300),
}
results = {}
print("labels:", labels.tolist())
for text, call in calls.items():
    ours, theirs = call(jnp, jnp.asarray(labels)).tolist(), call(np, labels).tolist()
    results[text] = ours, theirs
    print(f"{text}: jax {ours}, numpy {theirs}")
expected = {
    "labels == -100": ([False, False, True, False, False], [False] * 5),
    "labels == -1": ([False, False, False, False, True], [False] * 5),
    "labels < 300": ([True, False, False, False, False], [True] * 5),
    "clip(labels, 0, 300)": ([0, 44, 44, 44, 44], labels.tolist()),
}
sys.exit(0 if results == expected else "The behaviour has changed.")
P
