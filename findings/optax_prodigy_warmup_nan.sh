#!/usr/bin/env bash
# optax.contrib's Prodigy and D-Adaptation take a schedule as their learning rate, and are documented to work best with
# a warm-up. One from zero, as optax's own usually are, makes NaN of all parameters in the first step (Prodigy) or the
# second (D-Adaptation), and for good. So does a first batch that has nothing to learn, whose gradient is zero. Both
# estimate the step size as a quotient of what rates and gradients have added up to, here 0 / 0; the PyTorch code of
# Prodigy's authors makes no step then. A warm-up from a hundredth trains, and so do schedule-free AdamW and DoWG with
# the one from zero. Seen with optax 0.2.8. prismer_jax trains with none of them.
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
import numpy as np
import optax
from optax import contrib

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("optax", "jax")))


def first_nan(optimizer: optax.GradientTransformation, silent: int = 0) -> int | None:
    """Returns the step after which a parameter is NaN; the gradients of the first `silent` steps are zero."""
    target = jnp.array([3.0, -2.0, 1.0])
    params = jnp.zeros(3)
    state = optimizer.init(params)
    for step in range(1, 51):
        gradient = jax.grad(lambda p: ((p - target) ** 2).sum())(params) * (step > silent)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        if np.isnan(params).any():
            return step


makers = {
    "prodigy": contrib.prodigy,
    "dadapt_adamw": contrib.dadapt_adamw,
    "schedule_free_adamw": contrib.schedule_free_adamw,
    "dowg": contrib.dowg,
}
seen = {}
for name, make in makers.items():
    seen[name] = [first_nan(make(optax.warmup_cosine_decay_schedule(low, 1.0, 10, 50))) for low in (0.0, 0.01)]
    seen[name].append(first_nan(make(1.0), silent=1))
    told = [f"NaN after step {step}" if step else "trains" for step in seen[name]]
    print(f"{name}: warm-up from 0: {told[0]}; from 0.01: {told[1]}; rate 1, first gradient zero: {told[2]}")
expected = {"prodigy": [1, None, 1], "dadapt_adamw": [2, None, 2]}
expected |= {name: [None] * 3 for name in ("schedule_free_adamw", "dowg")}
sys.exit(0 if seen == expected else "The behaviour has changed.")
P
