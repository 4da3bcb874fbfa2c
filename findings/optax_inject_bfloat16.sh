#!/usr/bin/env bash
# optax.inject_hyperparams, which is there to log and change a learning rate, makes AdamW of bfloat16 parameters return
# NaN from the first step on, where the same optimizer without it trains. It keeps every number that the optimizer is
# called with as an array of the parameters' type: b2 = 0.999 is 1 in bfloat16, so that the mean of the squares stays
# zero and is then divided by 1 - b2 ** step, zero as well. A single float32 parameter among them makes all of it right,
# and so does hyperparam_dtype=float32. With b2 = 0.99, which is 0.988 in bfloat16, there is no NaN, but another
# optimizer. Seen with optax 0.2.8; google-deepmind/optax#1414 asks for float32, and does not mention NaN. prismer_jax
# injects nothing: its learning rate is a function of the step (prismer_jax/optim.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata

import jax
import jax.numpy as jnp
import optax

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("optax", "jax")))


def train(optimizer, params):
    """Returns the first number of `kernel` after each of four steps with gradients of one."""
    state, values = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        values.append(float(params["kernel"][0]))
    return values


kernel = {"kernel": jnp.full(3, 2, jnp.bfloat16)}
both = kernel | {"norm": jnp.full(3, 2, jnp.float32)}
injected, wide = (optax.inject_hyperparams(optax.adamw, hyperparam_dtype=dtype) for dtype in (None, jnp.float32))
runs = {
    "adamw of bfloat16": train(optax.adamw(0.01), kernel),
    "injected adamw of bfloat16": train(injected(0.01), kernel),
    "injected adamw of bfloat16 and float32": train(injected(0.01), both),
    "injected adamw of bfloat16 with hyperparam_dtype=float32": train(wide(0.01), kernel),
}
for name, values in runs.items():
    print(f"{name}: {values}")
b2 = {value: float(injected(0.01, b2=value).init(kernel).hyperparams["b2"]) for value in (0.999, 0.99)}
print("b2 as it is kept:", b2)
plain, nans, *right = runs.values()
assert jnp.isnan(jnp.array(nans)).all(), "The behaviour has changed."
assert right == [plain, plain], "The behaviour has changed."
assert (b2[0.999], round(b2[0.99], 3)) == (1, 0.988), "The behaviour has changed."
P
