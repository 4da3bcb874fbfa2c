#!/usr/bin/env bash
# On a CPU, a program that JAX's compilation cache has on disk is not at hand at once: what it takes to load grows faster
# than with the square of its operations. One of 2,000 small layers takes about as long to load as to compile, and over 30
# times as long as one of 500, whether XLA's library YNNPACK multiplies (the default) or not (by the flag). A loop
# (jax.lax.scan) over 2,000 layers is loaded in a few milliseconds. jaxlib 0.10.2 and 0.12.0.1 are alike in this.
# Thus a loop, in place of unrolled operations, saves more than compilation; prismer_jax's Muon has loops for that
# (prismer_jax/optim.py). Times are the processor's, of all threads of a process. $JAX names another version.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}" numpy==2.4.6
cat > "$folder/program.py" <<'P'
import json
import sys
import time

import jax
import jax.numpy as jnp


def unrolled(x, kernels):
    for kernel in kernels:
        x = x + jnp.sin(x @ kernel)
    return x


def looped(x, kernels):
    return jax.lax.scan(lambda x, kernel: (x + jnp.sin(x @ kernel), None), x, kernels)[0]


x, kernel = (jax.ShapeDtypeStruct((n, 32), jnp.float32) for n in (64, 32))
stack = jax.ShapeDtypeStruct((2000, 32, 32), jnp.float32)
lowered = {
    "500 layers": jax.jit(unrolled).lower(x, [kernel] * 500),
    "2000 layers": jax.jit(unrolled).lower(x, [kernel] * 2000),
    "a loop over 2000": jax.jit(looped).lower(x, stack),
}
times = {}
for name, program in lowered.items():
    start = time.process_time()
    program.compile()
    times[name] = time.process_time() - start
json.dump(times, sys.stdout)
P
cat > "$folder/compare.py" <<'P'
import json
import sys

compiled, loaded = (json.load(open(name)) for name in ("compiled", "loaded"))
print("seconds of the processor, jaxlib", sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
for name in compiled:
    print(f"  {name:<18} compiled {compiled[name]:7.3f}   loaded {loaded[name]:7.3f}")
few, many, loop = loaded.values()
print(f"  2000 layers load {many / few:.0f} times as long as 500, {many / compiled['2000 layers']:.2f} of compiling them")
sys.exit("The behaviour has changed." if many < 16 * few or many < compiled["2000 layers"] / 3 or loop > few else 0)
P
cd "$folder"
export JAX_PLATFORMS=cpu JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
for flags in "" --xla_cpu_experimental_ynn_fusion_type=; do
  export XLA_FLAGS=$flags JAX_COMPILATION_CACHE_DIR="$folder/cache$flags"
  venv/bin/python program.py > compiled
  venv/bin/python program.py > loaded
  venv/bin/python compare.py "${JAX:-0.10.2}" $flags
done
