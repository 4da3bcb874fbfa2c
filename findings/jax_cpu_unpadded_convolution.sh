#!/usr/bin/env bash
# On a CPU, jaxlib 0.10.2 takes two to four times as long for a convolution of 3x3 without padding ("VALID") as for
# the same one with padding ("SAME") whose border is then cut off, though it computes fewer pixels and the results are
# equal. Padding at one border alone, ((1, 0), (0, 0)), is fast, too. XLA's library YNNPACK takes the unpadded ones, and
# none of the others: without it, by a flag, they take the same. jaxlib 0.11.0, 0.11.1 and 0.12.0.1 do not do this.
# prismer_jax pads and cuts in its edge network (prismer_jax/experts/edge.py). Times are the processor's, of all threads
# of one process, as ratios; the least of 10 calls.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/convolve.py" <<'P'
import functools
import importlib.metadata
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np


def convolve(x, kernel, padding):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def least(function):
    program, times = jax.jit(function), []
    for _ in range(10):
        start = time.process_time()
        out = jax.block_until_ready(program(x, kernel))
        times.append(time.process_time() - start)
    return min(times), np.asarray(out)


x = jax.random.normal(jax.random.key(0), (1, 242, 242, 128))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 128, 128))
unpadded, out = least(functools.partial(convolve, padding="VALID"))
cut, same = least(lambda x, kernel: convolve(x, kernel, "SAME")[:, 1:-1, 1:-1])
one_sided, _ = least(functools.partial(convolve, padding=((1, 0), (0, 0))))
np.testing.assert_allclose(out, same, atol=1e-2)  # of numbers around 34
print(f"without padding {1e3 * unpadded:.1f} ms, padded and cut {1e3 * cut:.1f} ms", end=", ")
print(f"padded at one border {1e3 * one_sided:.1f} ms; {unpadded / cut:.1f} times as long without", end="; ")
print("jaxlib", importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", ""))
if os.environ.get("XLA_FLAGS"):
    changed = unpadded > 1.6 * cut
else:
    changed = unpadded < 2 * cut or one_sided > 1.6 * cut
sys.exit("The behaviour has changed." if changed else 0)
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python convolve.py
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= venv/bin/python convolve.py
