#!/usr/bin/env bash
# flax.linen.avg_pool adds up a window in the type of its input, where jnp.mean of the same pixels adds up in float32. A
# sum in bfloat16 stands still at 256: averaged over a map of 24 by 24 patches, 64 channels of random features between 0
# and 1 have one and the same mean, 0.445, so that nothing of the photo is left; in windows of 7 by 7 there is no more
# than rounding. Bytes wrap around: the mean of four pixels of 100 is 36. Seen with flax 0.12.8 and 0.12.12, jaxlib
# 0.10.2 and 0.12.0.1, on a CPU. prismer_jax averages windows of 3 by 3 at most (experts/detection/resnest.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/pool.py" <<'P'
import importlib.metadata
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("flax", "jax", "jaxlib")))


def errors(side: int) -> tuple[float, float, int]:
    """Returns how far the means of 64 channels are off, of avg_pool and of jnp.mean, and how many avg_pool tells."""
    x = jax.random.uniform(jax.random.key(0), (1, side, side, 64), jnp.bfloat16)
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    pooled = np.asarray(nn.avg_pool(x, (side, side)), np.float64).ravel()
    mean = np.asarray(x.mean((0, 1, 2)), np.float64)
    return float(np.abs(pooled - exact).max()), float(np.abs(mean - exact).max()), len(set(pooled.tolist()))


results = {side: errors(side) for side in (7, 24, 64)}
for side, (pool, mean, different) in results.items():
    print(f"{side} x {side} in bfloat16: avg_pool is up to {pool:.3f} off, jnp.mean {mean:.3f};", end=" ")
    print(f"64 channels have {different} different means by avg_pool")
byte = int(nn.avg_pool(jnp.full((1, 2, 2, 1), 100, jnp.uint8), (2, 2)).ravel()[0])
print("Of four bytes of 100, avg_pool's mean is", byte)
small = results[7][0] < 0.02 and all(mean < 0.002 for _, mean, _ in results.values())
wrong = results[24][2] < 5 and results[64][0] > 0.2
sys.exit(0 if small and wrong and byte == 36 else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python pool.py
