#!/usr/bin/env bash
# A single index of int8, as vmap and scan hand them out one by one, counts from the end in JAX only where there are at
# most 128 rows: x[i] with i = -1 is row 0 of 1,000 and row 43 of 300, and lax.dynamic_slice and dynamic_update_slice,
# which writes there, take the same one. The length is added to the index in the index's own type, which has no such
# number. int16 does alike beyond 32,768 rows. The same indices as one array raise an OverflowError, and NumPy counts
# right. So labels kept as int8, -1 for the last row of a table, mean another row, in silence. prismer_jax has none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/index.py" <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")))


def last(rows: int, dtype: type) -> dict[str, int]:
    """Returns which row index -1 is, in several ways."""
    x, index = jnp.arange(rows), jnp.array([-1], dtype)
    written = jax.lax.dynamic_update_slice(jnp.zeros(rows), jnp.ones(1), (index[0],))
    results = {
        "NumPy": np.arange(rows)[np.array(-1, dtype)],
        "x[i]": x[index[0]],
        "vmap": jax.vmap(lambda i: x[i])(index)[0],
        "scan": jax.lax.scan(lambda carry, i: (carry, x[i]), 0, index)[1][0],
        "dynamic_slice": jax.lax.dynamic_slice(x, (index[0],), (1,))[0],
        "dynamic_update_slice": written.argmax(),
    }
    return {name: int(result) for name, result in results.items()}


cases = {(128, np.int8): 127, (300, np.int8): 43, (1000, np.int8): 0, (1000, np.int16): 999, (100_000, np.int16): 0}
ok = True
for (rows, dtype), wrong in cases.items():
    results = last(rows, dtype)
    print(f"Row -1 of {rows} by {np.dtype(dtype).name}: {results}")
    ok &= results.pop("NumPy") == rows - 1 and set(results.values()) == {wrong}
try:
    message = f"rows {jnp.arange(300)[jnp.array([-1], jnp.int8)].tolist()}"
except OverflowError as error:
    message = f"OverflowError: {error}"
print("An array of int8 indices into 300 rows:", message)
sys.exit(0 if ok and message.startswith("OverflowError") else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python index.py
