#!/usr/bin/env bash
# jnp.repeat with how often each row is to come as bytes, say how many tokens each photo of a packed row has, returns an
# array of the right length with the wrong rows in it: the places where the rows begin are added up in the type of the
# counts, which wraps around behind 255. Of 200, 100 and 5 repetitions it makes 44, 156 and 105, in jit and out of it,
# with total_repeat_length and without, and of eight photos of 64 tokens four have none. Where no row begins behind 255,
# all is right. NumPy, and int32 counts, do as they are told. prismer_jax repeats by one number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/repeat.py" <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")))


def repeated(counts: list[int], dtype: type) -> dict[str, list[int]]:
    """Returns how often each row comes."""
    rows, counts, total = np.arange(len(counts)), np.array(counts, dtype), sum(counts)
    jitted = jax.jit(lambda rows, counts: jnp.repeat(rows, counts, total_repeat_length=total))
    results = {
        "NumPy": np.repeat(rows, counts),
        "jnp.repeat": jnp.repeat(rows, counts),
        "with total_repeat_length, in jit": jitted(rows, counts),
    }
    assert {len(result) for result in results.values()} == {total}
    return {name: np.bincount(result, minlength=len(rows)).tolist() for name, result in results.items()}


cases = {(200, 50, 5): [200, 50, 5], (200, 100, 5): [44, 156, 105], (64,) * 8: [0, 64, 0, 64, 0, 64, 0, 320]}
ok = True
for counts, bytes_make in cases.items():
    for dtype in (np.uint8, np.int32):
        results = repeated(list(counts), dtype)
        print(f"{counts} as {np.dtype(dtype).name}: {results}")
        expected = bytes_make if dtype == np.uint8 else list(counts)
        ok &= results.pop("NumPy") == list(counts) and all(result == expected for result in results.values())
sys.exit(0 if ok else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python repeat.py
