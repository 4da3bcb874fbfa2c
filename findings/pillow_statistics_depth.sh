#!/usr/bin/env bash
# Pillow's ImageStat, which is there for the mean and the spread of an image, takes maps of depth without an error and
# returns numbers of another image. Of a map of 16 bits ("I;16", as a PNG of millimetres opens) it reads the bytes of
# the left half as if they were all pixels: of depths from 2,000 to 3,890, whose mean is 2,945, the mean is 67, the
# median 11, and the least and the largest are 0 and 254. Of the same numbers as "I" or "F" it reads where they lie
# between their least and largest, in 256 steps, so that every map reaches from 0 to 255, a map twice as deep has the
# same mean and the same spread, and one pixel far off moves the median of all from 128 to 4. Image.histogram, which it
# is made from, and Image.entropy do alike. So depth that is normalised by such a mean and spread is not. The
# documentation warns of the extrema of "I" and "F", for which getextrema is right, and says that a histogram has 256
# bins, but nothing of "I;16", nor of means. ImageStat of 8 bits and NumPy are right. Seen with Pillow 13.0.0.
# prismer_jax uses no ImageStat.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import io
import sys

import numpy as np
import PIL
from PIL import Image, ImageStat

print("Pillow", PIL.__version__)
depth = np.add.outer(10 * np.arange(64), 20 * np.arange(64)) + 2000
outlier = depth.copy()
outlier[0, 0] = 60_000  # one pixel of sky
maps = {
    "uint8": (depth // 16).astype(np.uint8),
    "uint16": depth.astype(np.uint16),
    "int32": depth.astype(np.int32),
    "float32": depth.astype(np.float32),
    "float32, twice as deep": (2 * depth).astype(np.float32),
    "float32, one pixel far off": outlier.astype(np.float32),
}
seen = {}
for name, array in maps.items():
    image = Image.fromarray(array)
    if name == "uint16":  # as it is read from a file
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = Image.open(buffer)
    by = ImageStat.Stat(image)
    seen[name] = [by.mean[0], by.stddev[0], by.median[0], *by.extrema[0]]
    true = [array.mean(dtype=float), array.std(dtype=float), np.median(array), array.min(), array.max()]
    assert image.getextrema() == tuple(true[3:])
    print(
        f"{name} ({image.mode}): mean, deviation, median, least and largest by ImageStat "
        f"{[round(float(value)) for value in seen[name]]}, by NumPy {[round(float(value)) for value in true]}"
    )
small, deep = maps["uint8"], maps["uint16"]
changed = abs(seen["uint8"][0] - small.mean()) > 0.01 or tuple(seen["uint8"][3:]) != (small.min(), small.max())
changed |= seen["uint16"][0] > 255 or abs(seen["uint16"][0] - deep.mean()) < 1000
changed |= any(seen[name][3:] != [0, 255] for name in ("int32", "float32", "float32, one pixel far off"))
changed |= not np.allclose(seen["float32, twice as deep"], seen["float32"], atol=1.5)
changed |= seen["float32, one pixel far off"][2] > 20 or not 100 < seen["float32"][2] < 150
sys.exit("The behaviour has changed." if changed else 0)
P
