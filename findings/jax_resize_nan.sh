#!/usr/bin/env bash
# One missing pixel of a depth map, NaN or infinite as such maps have them, makes NaN of the whole map where
# jax.image.resize makes it smaller or larger, by every method but "nearest": 3,136 of 3,136 pixels, of which Pillow's
# filters touch 4 to 36. Where only the height changes, the pixel's column goes. Other photos of the batch and other
# channels stay whole, so that it takes one pixel of one sample to make the mean loss NaN. The filter is a matrix with
# its zeros written out, which the map is multiplied by, and zero times NaN is NaN. A mask of valid pixels, resized
# beside the map, finds nothing valid left. Seen with jax 0.10.2 and 0.12.0.1. Label maps of prismer_jax are finite
# (prismer_jax/label_png.py, label_files.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 pillow==13.0.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import jax
import numpy as np
from PIL import Image

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "pillow")))
METHODS = {"nearest": Image.NEAREST, "linear": Image.BILINEAR, "cubic": Image.BICUBIC, "lanczos3": Image.LANCZOS}
depth = np.random.default_rng(0).uniform(1, 10, (224, 224)).astype(np.float32)
changed = False
for missing in (np.nan, np.inf):
    depth[101, 50] = missing
    for height, width in ((56, 56), (448, 448), (112, 224)):
        told = []
        for method, by in METHODS.items():
            resized = [jax.image.resize(depth, (height, width), method)]
            resized.append(Image.fromarray(depth).resize((width, height), by))
            bad = [int((~np.isfinite(np.asarray(image))).sum()) for image in resized]
            told.append(f"{method} {bad[0]:,} and {bad[1]}")
            if method == "nearest":
                changed |= bad[0] > 4
            else:
                changed |= bad[0] != (height if width == 224 else height * width) or bad[1] > 150
        print(f"one {missing}, 224x224 to {height}x{width}; bad pixels of jax and of Pillow:", "; ".join(told))
batch = np.stack([depth, np.ones_like(depth)])
lost = ~np.isfinite(np.asarray(jax.image.resize(batch, (2, 56, 56), "linear")))
print("in a batch with a whole one, shares of bad pixels:", *lost.mean((1, 2)))
sys.exit("The behaviour has changed." if changed or list(lost.mean((1, 2))) != [1, 0] else 0)
P
