#!/usr/bin/env bash
# jax.nn.one_hot of labels that are bytes is not one-hot where there are more than 256 classes, though every label is a
# valid class: label 10 of 1,000 classes is hot at 10, 266, 522 and 778, and a label of int8 that is to be ignored (-1)
# at 255, 511 and 767. It compares the labels with the numbers of the classes in the labels' own type, where these begin
# again at 0. Nothing is said: the cross-entropy of untrained logits is four times log(1000), and multiclass losses of
# optax, which make their targets so, differ alike. Labels of int32, optax's loss for integer labels and flax's
# common_utils.onehot are right, and so are bytes for up to 256 classes. Seen with jax 0.10.2 and 0.12.0.1. prismer_jax
# makes no one-hot targets of labels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import common_utils

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax")))


def hot(function, label, dtype, classes):
    return np.flatnonzero(function(jnp.array(label, dtype), classes)).tolist()


seen = {}
for label, dtype, classes in ((10, "uint8", 256), (10, "int32", 1000), (10, "uint8", 1000), (-1, "int8", 1000)):
    seen[label, dtype, classes] = hot(jax.nn.one_hot, label, dtype, classes)
    print(f"label {label} of {dtype}, {classes} classes: jax.nn.one_hot is 1 at", seen[label, dtype, classes], end=", ")
    print("flax's onehot at", hot(common_utils.onehot, label, dtype, classes))

labels, logits = jnp.array([10, 200], jnp.uint8), jnp.zeros((2, 1000))
by_targets = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 1000)).mean()
by_labels = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
print(f"cross-entropy of equal logits: {by_targets:.2f} with one-hot targets, {by_labels:.2f} with the labels")
scores = jax.random.normal(jax.random.key(0), (2, 1000))
hinge = [optax.losses.multiclass_hinge_loss(scores, labels.astype(dtype)).mean() for dtype in ("uint8", "int32")]
print(f"optax's multiclass_hinge_loss: {hinge[0]:.2f} of uint8 labels, {hinge[1]:.2f} of the same in int32")
changed = list(seen.values()) != [[10], [10], [10, 266, 522, 778], [255, 511, 767]]
changed |= hot(common_utils.onehot, 10, "uint8", 1000) != [10] or abs(by_targets / by_labels - 4) > 0.01
changed |= abs(hinge[0] - hinge[1]) < 0.1
sys.exit("The behaviour has changed." if changed else 0)
P
