#!/usr/bin/env bash
# Mixed precision as flax.linen.Embed(dtype=bfloat16) does it: the table is float32 and so is its gradient, but the rows
# are looked up in a bfloat16 copy, so that the gradients of all places where a word stands are added up one by one in
# bfloat16, which stands still at 256 times the size of what is added. In a batch of 8,192 tokens, the gradient of a
# word at each second place, as padding or a full stop may be, is 16 times too small, and that of a rare one is right. A
# bias of the same type that is added at all places has its gradient summed in float32. Rows that are looked up first
# and cast then get the right one. Seen on a CPU. prismer_jax casts behind the look-up (towers/causal_lm.py: embed).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/embed.py" <<'P'
import importlib.metadata
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("flax", "jax", "jaxlib")))
TOKENS = 8192
ids = np.ones(TOKENS, np.int32)
ids[::2] = 0  # each second place
ids[1], ids[3::8] = 2, 3
counts = np.bincount(ids)
embed = nn.Embed(4, 8, dtype=jnp.bfloat16)
table = embed.init(jax.random.key(0), ids)["params"]["embedding"]


def looked_up(table: jax.Array) -> jax.Array:
    return embed.apply({"params": {"embedding": table}}, ids)


def cast_behind(table: jax.Array) -> jax.Array:
    return table[ids].astype(jnp.bfloat16)


def bias(table: jax.Array) -> jax.Array:
    return jnp.zeros((TOKENS, 8), jnp.bfloat16) + table[0].astype(jnp.bfloat16)


def gradient(layer) -> jax.Array:
    """Returns the gradient of the sum of all that a layer gives: how often each row is used."""
    return jax.jit(jax.grad(lambda table: layer(table).astype(jnp.float32).sum()))(table)


results = {layer.__name__: gradient(layer) for layer in (looked_up, cast_behind, bias)}
print("Places of each word:", counts.tolist())
for name, result in results.items():
    print(f"{name}: the gradient is {result.dtype}, its rows are {result[:, 0].tolist()}")
right = np.array_equal(results["cast_behind"][:, 0], counts) and float(results["bias"][0, 0]) == TOKENS
wrong = np.array_equal(results["looked_up"][:, 0], np.minimum(counts, 256))
sys.exit(0 if right and wrong and table.dtype == jnp.float32 else "The behaviour has changed.")
P
cd "$folder"
export JAX_PLATFORMS=cpu
venv/bin/python embed.py
