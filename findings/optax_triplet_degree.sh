#!/usr/bin/env bash
# optax.losses.triplet_margin_loss takes the degree of the norm by which it measures distances (norm_degree). Only an
# even one gives a norm: it raises the differences to that power as they are, with their signs. By degree 1, the
# distance of two vectors is the sum of their differences, where those up and down cancel: 0 between (0, 0) and (1, -1),
# of which it should be 2, and below 0 as often as above. The loss is of the usual size, and its gradient is the same
# for each number of the positive vector, wherever the anchor is, so that training makes all numbers of a positive
# smaller for ever, and nothing is learned of which vectors are alike. By degree 3 about three losses of four are NaN.
# Nothing is said. Degree 2, the default, is right. Seen with optax 0.2.8. prismer_jax has no triplets.
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


def mean(anchors, positives, negatives, degree):
    """Returns the mean triplet loss with a margin of 1 by the definition of a norm."""
    near, far = ((jnp.abs(anchors - other) ** degree).sum(-1) ** (1 / degree) for other in (positives, negatives))
    return jnp.maximum(near - far + 1, 0).mean()


rng = np.random.default_rng(0)
anchors, negatives = (jnp.asarray(rng.standard_normal((1000, 64)), jnp.float32) for _ in range(2))
positives = anchors + 0.1 * jnp.asarray(rng.standard_normal((1000, 64)), jnp.float32)  # by far nearer than negatives
seen = {}
for degree in (1, 2, 3):
    values = losses.triplet_margin_loss(anchors, positives, negatives, norm_degree=degree)
    def far(some, degree=degree):
        return losses.triplet_margin_loss(anchors, some, negatives, norm_degree=degree, margin=100.0).sum()

    pushes = jax.grad(far)(positives)
    different = len(np.unique(np.asarray(pushes)[np.isfinite(pushes)].round(4)))
    right = float(mean(anchors, positives, negatives, degree))
    seen[degree] = (float(jnp.nanmean(values)), right, float(jnp.isnan(values).mean()), different)
    print(
        f"degree {degree}: positives by each anchor, negatives far from it; mean loss {seen[degree][0]:.4f}, by the "
        f"definition {right:.4f}; NaN in {seen[degree][2]:.0%} of the losses; "
        f"{different} different numbers in its gradient"
    )
pair = [jnp.array([[0.0, 0.0]]), jnp.array([[1.0, -1.0]]), jnp.array([[0.0, 0.0]])]
apart = [float(losses.triplet_margin_loss(*pair, norm_degree=degree, margin=0.0)[0]) for degree in (1, 2)]
print(f"(0, 0) and (1, -1) are apart by {apart[0]:.3f} by degree 1, which should be 2, by {apart[1]:.3f} by degree 2")
changed = not (seen[1][0] > 1 and seen[1][1] == 0 and seen[1][3] == 1 and abs(apart[0]) < 1e-3)
changed |= abs(seen[2][0] - seen[2][1]) > 1e-3 or seen[2][2] > 0 or seen[2][3] < 100
changed |= abs(apart[1] - 2**0.5) > 2e-3
changed |= not 0.6 < seen[3][2] < 0.9
sys.exit("The behaviour has changed." if changed else 0)
P
