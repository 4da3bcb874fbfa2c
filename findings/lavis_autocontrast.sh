#!/usr/bin/env bash
# LAVIS trains BLIP-2 on photos that its RandomAugment has changed, and one of its ops says of itself that its output is
# that of PIL.ImageOps.autocontrast. It is so only of photos that have a black pixel in every channel: the offset is the
# negative of the darkest value, which is an unsigned byte and wraps around, so that the photo comes out almost white.
# The published models were trained so: prismer_jax's blip_randaugment does the same unless autocontrast="pillow" is
# asked for (prismer_jax/pp/blip.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps \
    salesforce-lavis==1.0.2 opencv-python-headless==4.12.0.88 numpy==2.2.6 pillow==12.0.0
cd "$folder" && touch torch.py && PYTHONPATH=. "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import importlib.util
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps

# The file alone, without the rest of LAVIS; it imports torch, which this op does not use.
(path,) = (f.locate() for f in importlib.metadata.files("salesforce-lavis") if f.name == "randaugment.py" and "processors" in f.parts)
spec = importlib.util.spec_from_file_location("randaugment", path)
lavis = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lavis)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("salesforce-lavis", "numpy", "pillow")))

ramp = np.arange(40, 200, dtype=np.uint8)
means = {}
for name, first in (("with a black pixel", 0), ("without", 40)):
    photo = np.repeat(np.concatenate([[first], ramp])[None, :, None], 3, axis=2).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the wrapped byte, where NumPy says so
        theirs = lavis.autocontrast_func(photo)
    pillow = np.asarray(ImageOps.autocontrast(Image.fromarray(photo)))
    means[name] = theirs.mean(), pillow.mean()
    print(f"a photo {name}: mean {photo.mean():.0f}; LAVIS {theirs.mean():.0f}, Pillow {pillow.mean():.0f}")
same, other = means.values()
sys.exit(0 if abs(same[0] - same[1]) < 2 and other[0] > 250 and other[1] < 140 else "The behaviour has changed.")
P
