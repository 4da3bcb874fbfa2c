#!/usr/bin/env bash
# optax.adafactor's weight_decay_rate is what all parameters lose at each step, whatever the learning rate is: at a rate
# of 0, as at the start of a warm-up or the end of a cosine, 0.1 takes 99.997% of them away in 100 steps, and 0.001
# still 10%. The decay of adamw, lion, lamb, adan, nadamw, adamaxw and novograd is multiplied by the learning rate, so
# that AdamW's usual 0.1 takes 1% at 0.001, and nothing at 0; so does that of transformers' Adafactor for PyTorch. Who
# moves from AdamW to Adafactor to save memory and keeps the decay trains on parameters that vanish, without NaN or a
# word. Its documentation says "optional rate at which to decay weights". Seen with optax 0.2.8. prismer_jax's adafactor
# decays as its other optimizers do, times the learning rate (prismer_jax/optim.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import optax

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("optax", "jax")))
TAKEN = dict.fromkeys(("adamw", "lion", "lamb", "adan", "nadamw", "adamaxw", "novograd"), "weight_decay")
TAKEN["adafactor"] = "weight_decay_rate"
gradients = {"kernel": jnp.zeros((4, 4))}


def left(make, argument, rate, decay):
    """Returns what is left of parameters of 1 after 100 steps with gradients of zero."""
    optimizer = make(rate, **{argument: decay})
    parameters = {"kernel": jnp.ones((4, 4))}

    def step(carry, _):
        parameters, state = carry
        updates, state = optimizer.update(gradients, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=100)
    return float(parameters["kernel"][0, 0])


changed = False
for name, argument in TAKEN.items():
    results = {}
    for rate in (0.0, 1e-3):
        for decay in (0.001, 0.1):
            results[rate, decay] = left(getattr(optax, name), argument, rate, decay)
    print(f"{name}, of 1 are left:", end=" ")
    print(", ".join(f"{x:.5f} at learning rate {rate}, decay {decay}" for (rate, decay), x in results.items()))
    if name == "adafactor":
        changed |= any(abs(x - (1 - decay) ** 100) > 1e-3 for (_, decay), x in results.items())
    else:
        changed |= any(abs(results[0.0, decay] - 1) > 1e-6 for decay in (0.001, 0.1))
sys.exit("The behaviour has changed." if changed else 0)
P
