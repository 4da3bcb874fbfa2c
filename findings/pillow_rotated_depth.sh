#!/usr/bin/env bash
# Pillow resizes a 16-bit map, such as depth in millimetres from a PNG, rightly by any filter, and refuses to blur it.
# But rotate() and transform() by BILINEAR or BICUBIC, of the same "I;16", return garbage without an error: of a smooth
# slope from 2,000 to 3,900 more than nine tenths are wrong, by up to 3,800. The bytes are interpolated as pixels of one
# byte each. NEAREST is right, and so is the same map as floats ("F"). Likewise paste(1000, box) writes 59,624, the
# lower byte twice, while rotate's fillcolor=1000 is 1,000; and composite() of 2,000 and 0 by halves makes 1,128. Floats
# made "I;16" by convert() end at 255; by way of "I" they are kept. Seen with Pillow 13.0.0. prismer_jax moves label
# maps by places, of int32 by NEAREST (prismer_jax/pp/randaugment.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import sys

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
y, x = np.mgrid[:64, :64]
depth = (2000 + 20 * x + 10 * y).astype(np.uint16)
mode = Image.fromarray(depth).mode
filters = {"NEAREST": 0, "BILINEAR": 2, "BICUBIC": 3}
moves = {
    "resize to 50x40": lambda image, by: image.resize((50, 40), by),
    "rotate by 10 degrees": lambda image, by: image.rotate(10, by),
    "shift by half a pixel": lambda image, by: image.transform((64, 64), Image.AFFINE, (1, 0, 0.5, 0, 1, 0), by),
}
wrong = {}
for move, function in moves.items():
    for name, by in filters.items():
        images = [Image.fromarray(depth.astype(dtype)) for dtype in ("uint16", "float32")]
        off = np.abs(np.subtract(*(np.asarray(function(image, by), float) for image in images)))
        wrong[move, name] = float((off > 30).mean())  # neighbours differ by 30 at most
        print(f"{mode}, {move}, {name}: at most {off.max():.0f} from floats, {wrong[move, name]:.0%} by over 30")

pasted = Image.fromarray(depth)
pasted.paste(1000, (0, 0, 2, 2))
filled = Image.fromarray(depth).rotate(45, fillcolor=1000)
half = Image.composite(Image.fromarray(depth), Image.new(mode, (64, 64), 0), Image.new("L", (64, 64), 128))
metres = Image.fromarray(np.full((1, 1), 1000, np.float32))
images = pasted, filled, half, metres.convert("I;16"), metres.convert("I").convert("I;16")
numbers = [image.getpixel((0, 0)) for image in images]
print("paste(1000): {}, rotate(fillcolor=1000): {}, composite of 2000 and 0 by 128/255: {}".format(*numbers[:3]))
print("1000.0 as I;16: {}, by way of I: {}".format(*numbers[3:]))
bad = [case for case, share in wrong.items() if share > 0.5]
right = [case for case, share in wrong.items() if share < 0.01]
expected = [(move, name) for move in list(moves)[1:] for name in ("BILINEAR", "BICUBIC")]
changed = bad != expected or len(right) != 5 or numbers != [59624, 1000, 1128, 255, 1000]
sys.exit("The behaviour has changed." if changed else 0)
P
