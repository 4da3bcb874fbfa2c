#!/usr/bin/env bash
# jax.jit(..., out_shardings=Format(Layout.AUTO)) lets the compiler choose how a result lies in memory. Where no
# argument was put on a device by the caller, so that the result belongs to none either ("uncommitted"), the next
# function takes that memory for rows, whatever its layout: the array prints right, equals what it should in NumPy, and
# x + 0, x.sum(0), jnp.copy(x) and gradients are of its scrambled values, in silence. With a sharding beside AUTO, or
# with an argument that device_put placed, all is right. Seen on a CPU with jax 0.10.2 and 0.12.0.1. prismer_jax asks
# for no layouts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/layout.py" <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")))
kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
device = jax.devices()[0]
sharding = jax.sharding.SingleDeviceSharding(device)


def transposed(x: jax.Array) -> jax.Array:
    return x.T


x = jnp.asarray(kernel.T)
arrays = {
    "AUTO": jax.jit(transposed, out_shardings=Format(Layout.AUTO))(x),
    "AUTO, of an argument on a device": jax.jit(transposed, out_shardings=Format(Layout.AUTO))(
        jax.device_put(x, device)
    ),
    "AUTO with a sharding": jax.jit(transposed, out_shardings=Format(Layout.AUTO, sharding))(x),
}
uses = {
    "as NumPy": (np.asarray, kernel),
    "+ 0": (lambda x: x + 0, kernel),
    "sum(0)": (lambda x: x.sum(0), kernel.sum(0)),
    "copy": (jnp.copy, kernel),
    "gradient of its squares": (jax.grad(lambda x: (x**2).sum() / 2), kernel),
}
right = {}
for name, array in arrays.items():
    results = {use: np.asarray(function(array)) for use, (function, _) in uses.items()}
    right[name] = {use: np.array_equal(result, uses[use][1]) for use, result in results.items()}
    layout = array.format.layout.major_to_minor
    print(f"{name}: layout {layout}, committed {array.committed}; is {results['as NumPy'].tolist()},", end=" ")
    print(f"+ 0 is {results['+ 0'].tolist()}; right: {right[name]}")
wrong = {use: use == "as NumPy" for use in uses}
expected = {name: wrong if name == "AUTO" else dict.fromkeys(uses, True) for name in arrays}
sys.exit(0 if right == expected else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python layout.py
