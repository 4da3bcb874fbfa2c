#!/usr/bin/env bash
# The same call of Pillow's Image.resize gives other pixels with Pillow 13 than with 12 for photos whose height shrinks
# much more than their width, as portraits of 2:3 that are made square. Its filters work on one axis after the other and
# round to 8 bits between them; up to 12 the rows come first, from 13 on, where it is less work, the columns
# (python-pillow/Pillow#9549, which speaks of speed alone). A fifth of the values is another by one level, so that what
# a model was trained on, stored hashes and recorded inputs of tests no longer fit to the bit, for some photos. Two
# calls, each of which changes one axis, give the same pixels in both versions. Seen with Pillow 12.3.0 and 13.0.0.
# prismer_jax always resizes rows first (prismer_jax/pp/image.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/resize.py" <<'P'
import sys

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__, "numpy", np.__version__)
rng = np.random.default_rng(0)
resized = {}
for width, height in ((640, 480), (480, 640), (427, 640), (300, 500)):
    y, x = np.mgrid[:height, :width, :1][:2] / 90
    waves = 128 + 80 * np.sin(x + np.arange(3)) * np.cos(y) + rng.normal(0, 20, (height, width, 3))
    photo = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
    name = f"{width}x{height} to 224x224"
    resized[name] = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC))
    rows_first = photo.resize((224, height), Image.Resampling.BICUBIC)
    resized[f"{name}, rows first by hand"] = np.asarray(rows_first.resize((224, 224), Image.Resampling.BICUBIC))
np.savez(sys.argv[1], **resized)
P
for version in 12.3.0 13.0.0; do
  "${PYTHON:-python3}" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "pillow==$version" numpy==2.4.6
  "$folder/$version/bin/python" "$folder/resize.py" "$folder/$version.npz"
done
"$folder/13.0.0/bin/python" - "$folder" <<'P'
import sys

import numpy as np

old, new = (np.load(f"{sys.argv[1]}/{version}.npz") for version in ("12.3.0", "13.0.0"))
changed = {}
for name in old.files:
    difference = np.abs(old[name].astype(int) - new[name])
    changed[name] = difference.max() > 0
    print(f"{name}: {100 * (difference > 0).mean():.1f} % of the values differ, by {difference.max()} at most")
expected = {name: name.startswith(("427x", "300x")) and "by hand" not in name for name in changed}
sys.exit("The behaviour has changed." if changed != expected else 0)
P
