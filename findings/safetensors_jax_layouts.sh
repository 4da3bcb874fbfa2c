#!/usr/bin/env bash
# safetensors 0.8.0 writes an array's memory as it lies and ignores its strides, where 0.7.0 wrote its rows, and where
# the writer for PyTorch refuses (its issue 825 is about NumPy's arrays in Fortran's order). With JAX, what a file holds
# then depends on the layout that the compiler chose: a program with Layout.AUTO, as for parameters that stay on a
# device, returns a jax.Array that prints, computes and compares right, and safetensors.flax.save_file writes it
# scrambled, with the right shape. A transposed kernel of NumPy's is scrambled, too, as whoever converts weights may
# write it. prismer_jax writes the format itself, from rows (weights/write.py), and reads with the library.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -q --disable-pip-version-check)
"${pip[@]}" safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/layouts.py" <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax
import safetensors.numpy
from jax.experimental.layout import Format, Layout

versions = {name: importlib.metadata.version(name) for name in ("safetensors", "jax", "jaxlib")}
print(*(f"{name} {version}" for name, version in versions.items()))
kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
x = jnp.asarray(kernel.T)
program = jax.jit(lambda x: x.T, out_shardings=Format(Layout.AUTO, x.sharding))
chosen = program(x)
as_usual = jax.jit(lambda x: x.T)(x)
equal = bool((chosen == kernel).all()) and np.array_equal(chosen, kernel)
print(f"The array is {kernel.tolist()}; JAX's, in a layout of its choice, {chosen.format.layout}, equals it: {equal}")
files = {"as usual": as_usual, "layout of its choice": chosen, "NumPy, transposed": np.asfortranarray(kernel)}
read = {}
for name, array in files.items():
    library = safetensors.flax if isinstance(array, jax.Array) else safetensors.numpy
    library.save_file({"kernel": array}, "kernel.safetensors")
    read[name] = safetensors.numpy.load_file("kernel.safetensors")["kernel"].tolist()
    print(f"{name}: read from the file: {read[name]}")
scrambled = [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]] if versions["safetensors"] == "0.8.0" else kernel.tolist()
expected = {"as usual": kernel.tolist(), "layout of its choice": scrambled, "NumPy, transposed": scrambled}
sys.exit(0 if equal and read == expected else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python layouts.py
"${pip[@]}" safetensors==0.7.0
venv/bin/python layouts.py
