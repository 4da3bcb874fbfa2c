#!/usr/bin/env bash
# transformers 5 has two ways from a picture with transparency to RGB. A processor that is given the opened file lays it
# on white; given the file's path or address, as chat templates and pipelines have it, it takes the colors behind what is
# transparent, which are black or whatever the editor has left there. A logo or a diagram is then black on black. EXIF's
# orientation is, the other way round, applied to paths alone. Nothing warns. A photo without either is the same both
# ways. Seen with transformers 5.24.0; 4.57.1 takes the hidden colors both ways. prismer_jax lays every photo on white
# and turns it upright, however it is given (prismer_jax/pp/image.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.24.0 numpy==2.4.6 pillow==12.0.0
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'P'
import numpy as np
import transformers
from PIL import Image, ImageDraw
from transformers import SiglipImageProcessorPil

logo = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # nothing but transparency, on which a black disc is drawn
ImageDraw.Draw(logo).ellipse((16, 16, 48, 48), (0, 0, 0, 255))
logo.save("logo.png")
plain = Image.effect_noise((64, 64), 80).convert("RGB")
plain.save("plain.png")
exif = Image.Exif()
exif[0x0112] = 6  # turn by 90 degrees
ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3)))
ramp.save("turned.png", exif=exif)

print("transformers", transformers.__version__)
processor = SiglipImageProcessorPil(size={"height": 64, "width": 64}, do_convert_rgb=True)
seen = {}
for name in ("plain.png", "logo.png", "turned.png"):
    opened, path = (processor(images=x, return_tensors="np")["pixel_values"][0] for x in (Image.open(name), name))
    seen[name] = [bool(np.allclose(opened, path)), [round(float(x[0, 0, 0]), 2) for x in (opened, path)]]
    print(f"{name}: opened and by its path {'the same' if seen[name][0] else 'differ'}, the corners are {seen[name][1]}")
pixels = processor(images="logo.png", return_tensors="np")["pixel_values"]
print(f"logo.png by its path has {len(np.unique(pixels))} color, so nothing of the disc is left")
expected = seen["plain.png"][0], seen["logo.png"], seen["turned.png"][0], len(np.unique(pixels))
assert expected == (True, [False, [1.0, -1.0]], False, 1), f"The behaviour has changed: {expected}"
P
