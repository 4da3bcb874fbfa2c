#!/usr/bin/env bash
# The search for the few largest of many, jax.lax.top_k, is fast on a CPU by itself, also where both of its results are
# sliced alike. Where fewer are taken of its values than of its places, it becomes a sort of the whole array, a hundred
# times as slow: XLA makes of its call a sort and two slices, joins these with the slices behind them, and no longer
# knows two slices of unequal length for a top_k. A beam search does just that (take 2 x beams, keep beams). With
# lax.optimization_barrier between the two, the results stay and the time is that of top_k alone. Seen with jaxlib 0.10.2
# and 0.12.0.1; prismer_jax has that barrier where it slices (prismer_jax/decode/beam.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder" && JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
scores = jnp.asarray(np.random.RandomState(0).standard_normal((4, 150_000)), jnp.float32)


def alone(scores):
    return jax.lax.top_k(scores, 6)


def sliced(scores):
    values, places = jax.lax.top_k(scores, 6)
    return values[:, :3], places


def behind_a_barrier(scores):
    values, places = jax.lax.optimization_barrier(jax.lax.top_k(scores, 6))
    return values[:, :3], places


def seconds(program):
    start = time.perf_counter()
    jax.block_until_ready(program(scores))
    return time.perf_counter() - start


programs = {f.__name__: jax.jit(f).lower(scores).compile() for f in (alone, sliced, behind_a_barrier)}
sorts = {name: " sort(" in program.as_text() for name, program in programs.items()}
for name, program in programs.items():
    best = min(seconds(program) for _ in range(7))
    print(f"top_k of 4 x 150,000, {name.replace('_', ' ')}: {best * 1e3:.1f} ms, {'a sort' if sorts[name] else 'no sort'}")
same = all(np.array_equal(a, b) for a, b in zip(programs["sliced"](scores), programs["behind_a_barrier"](scores)))
print("The results are equal:", same)
expected = {"alone": False, "sliced": True, "behind_a_barrier": False}
sys.exit(0 if same and sorts == expected else "The behaviour has changed.")
P
