#!/usr/bin/env bash
# optax.losses.multiclass_generalized_dice_loss weighs each class by one over the square of its pixels, which is meant
# to help rare classes. A class without a pixel in the batch, as is usual where there are many classes, has the square
# of 0 and 10^-7 in its place, so that it weighs some 10^13 times as much as a class of 2,000 pixels, and as the weights
# are scaled to a fixed sum, those of all others are next to nothing. The loss is then the same whether each pixel of
# the classes that are there is right or wrong, and its gradient does nothing but make the absent class less likely. In
# training, such batches count as if they had no labels, and nothing is said. Where all classes are in the batch, with
# about as many pixels, and by optax.losses.dice_loss, which weighs all alike, right and wrong differ as they should.
# Seen with optax 0.2.8. prismer_jax has no loss of overlaps.
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
from optax import losses

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("optax", "jax")))
CLASSES, SHAPE = 5, (2, 64, 64)
seen = {}
for present in (5, 4):
    labels = np.random.default_rng(0).integers(0, present, SHAPE)
    target = jax.nn.one_hot(labels, CLASSES)
    right = 10.0 * target  # logits of a network that is sure
    wrong = 10.0 * jax.nn.one_hot((labels + 1) % present, CLASSES)  # of no pixel is the class right
    print(f"{present} of {CLASSES} classes are in the batch:")
    for name in ("multiclass_generalized_dice_loss", "dice_loss"):
        by = getattr(losses, name)
        values = [float(jnp.mean(by(logits, target))) for logits in (right, wrong)]
        start = jnp.zeros((*SHAPE, CLASSES))
        gradient = jax.grad(lambda logits, by=by, target=target: jnp.mean(by(logits, target)))(start)
        own = jnp.take_along_axis(gradient, jnp.asarray(labels)[..., None], -1)
        # From equal logits, how much a step raises the right class above another one that is there.
        other = jnp.take_along_axis(gradient, jnp.asarray((labels + 1) % present)[..., None], -1)
        lead = float((other - own).mean() / jnp.abs(gradient).max())
        seen[present, name] = (*values, lead)
        print(
            f"  {name}: all pixels right {values[0]:.6f}, all wrong {values[1]:.6f}; the gradient tells the right "
            f"class from another of the batch by {lead:.7f} of its largest entry"
        )
blind, sound = (seen[present, "multiclass_generalized_dice_loss"] for present in (4, 5))
fine = [sound, seen[5, "dice_loss"], seen[4, "dice_loss"]]
changed = abs(blind[0] - blind[1]) > 1e-4 or abs(blind[2]) > 1e-3
changed |= any(values[1] - values[0] < 0.5 or values[2] < 0.1 for values in fine)
sys.exit("The behaviour has changed." if changed else 0)
P
