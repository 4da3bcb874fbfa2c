#!/usr/bin/env bash
# optax.MultiSteps around apply_if_finite never trains again after one gradient with a NaN: the accumulator is reset by
# a multiplication with zero, NaN times zero is NaN, and apply_if_finite turns every later update into zeros. The
# parameters stand still without an error. The other way round, apply_if_finite around MultiSteps, it loses the one
# gradient. prismer_jax/optim.py accumulates within the step and carries nothing over.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax.numpy as jnp
import optax

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("optax", "jax")))


def train(optimizer: optax.GradientTransformation) -> list[float]:
    """Returns the parameter after each of 12 steps with the gradient 1, but for a NaN in the third."""
    param, history = jnp.zeros(()), []
    state = optimizer.init(param)
    for step in range(12):
        gradient = jnp.asarray(float("nan") if step == 2 else 1.0)
        update, state = optimizer.update(gradient, state, param)
        param = optax.apply_updates(param, update)
        history.append(float(param))
    return history


inner = train(optax.MultiSteps(optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=1000), every_k_schedule=2))
outer = train(optax.apply_if_finite(optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2), max_consecutive_errors=1000))
print("MultiSteps(apply_if_finite(sgd)):", inner)
print("apply_if_finite(MultiSteps(sgd)):", outer)
stands = inner == [0.0] + [-1.0] * 11
sys.exit(0 if stands and outer[-1] == -5.0 else "The behaviour has changed.")
P
