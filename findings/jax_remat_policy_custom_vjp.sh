#!/usr/bin/env bash
# A remat policy that keeps matrix products, such as jax.checkpoint_policies.checkpoint_dots, keeps none of a function
# with a jax.custom_vjp whose forward rule calls the function itself, as is usual: `return f(x), residuals`. The backward
# pass then computes the product again, as if nothing were to be kept, and nothing is said; memory falls, and the step
# takes longer. Where the forward rule has the product in it, written once more, the policy keeps it. Seen with jax 0.10.2
# and 0.12.0.1; prismer_jax writes it once more (prismer_jax/towers/layers.py: product; layers_test.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder" && JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import sys

import jax
import jax.numpy as jnp

print("jax", jax.__version__)


def usual(x, kernel):
    return x @ kernel


@jax.custom_vjp
def calling(x, kernel):
    return x @ kernel


@jax.custom_vjp
def written(x, kernel):
    return x @ kernel


def backward(kept, g):
    return g @ kept[1].T, kept[0].T @ g


calling.defvjp(lambda x, kernel: (calling(x, kernel), (x, kernel)), backward)
written.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), backward)
nothing, dots = jax.checkpoint_policies.nothing_saveable, jax.checkpoint_policies.checkpoint_dots


def products(product, policy):
    """Counts the matrix products of the gradient of two layers, each of them product, sine."""
    layer = jax.checkpoint(lambda x, k: jnp.sin(product(jnp.sin(product(x, k)), k)), policy=policy)
    jaxpr = jax.make_jaxpr(jax.grad(lambda k: layer(jnp.ones((2, 4)), k).sum()))(jnp.ones((4, 4)))
    return str(jaxpr).count("dot_general[")


counts = {}
for product, what in ((usual, "x @ kernel"), (calling, "a forward rule that calls"), (written, "one with the product")):
    counts[f"{what}, nothing kept"] = products(product, nothing)
    counts[f"{what}, products kept"] = products(product, dots)
for what, count in counts.items():
    print(f"{count} matrix products in the gradient: {what}")
usual, calling, written = zip(*[iter(counts.values())] * 2)
sys.exit(0 if usual[1] < usual[0] and calling[1] == calling[0] and written[1] < written[0] else "The behaviour has changed.")
P
