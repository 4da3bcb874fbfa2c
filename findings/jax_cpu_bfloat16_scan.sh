#!/usr/bin/env bash
# On a CPU, a scan over a stack of bfloat16 kernels takes more memory than one over float32 kernels: as nothing there
# multiplies bfloat16, XLA makes float32 of every kernel, and it does so for the whole stack at once, ahead of the loop.
# Whoever halves the weights of a model of many layers to fit it into memory needs three times the memory of the halves.
# Without the pass "while-loop-invariant-code-motion" each layer's kernel is converted where it is used; prismer_jax
# compiles a training step so where parameters are bfloat16 (prismer_jax/training/step.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")))
LAYERS, WIDTH = 32, 512


def model(kernels, x):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def megabytes(dtype, options=None):
    kernels = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), dtype)
    lowered = jax.jit(model).lower(kernels, jax.ShapeDtypeStruct((8, WIDTH), dtype))
    memory = lowered.compile(options).memory_analysis()
    return memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20


found = {
    "float32": megabytes(jnp.float32),
    "bfloat16": megabytes(jnp.bfloat16),
    "bfloat16, without the pass": megabytes(
        jnp.bfloat16, {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
    ),
}
for name, (kernels, rest) in found.items():
    print(f"{LAYERS} kernels of {WIDTH} x {WIDTH}, {name}: {kernels:.1f} MiB of arguments, {rest:.1f} MiB beside them")
whole = 4 * LAYERS * WIDTH * WIDTH / 2**20
changed = found["float32"][1] > whole / 8 or found["bfloat16, without the pass"][1] > whole / 8
sys.exit("The behaviour has changed." if changed or found["bfloat16"][1] < whole else 0)
P
