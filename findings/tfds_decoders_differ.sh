#!/usr/bin/env bash
# Read without TensorFlow (as_data_source), tensorflow-datasets decodes images by OpenCV where that is installed and by
# Pillow where it is not, and advises OpenCV for its speed. The two give other numbers of the same record: a label map
# with a palette, as Pascal VOC's are, is read as its classes by Pillow and as colours by OpenCV, of three channels
# though the feature says one; a mask of one bit is 0 and 1 by Pillow, 0 and 255 by OpenCV; a CMYK photo has four
# channels by Pillow, three by OpenCV. A photo with transparency has four by either, where the feature says three, and
# of 16 bits the lower byte is kept, not the upper. Nothing is said: the shape that a feature declares is not looked at.
# So a training changes its labels when another package brings OpenCV along. Grey maps and RGB photos of 8 bits are the
# same by both. Seen with tensorflow-datasets 4.9.10, opencv-python-headless 5.0.0.93 and Pillow 13.0.0. prismer_jax
# stores all photos and label maps of its record files so that both read them alike (prismer_jax/shards/ingest.py and
# its test).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
install=("$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6)
"${install[@]}" tensorflow-datasets==4.9.10 tensorflow-metadata==1.21.0 protobuf==7.36.2 pillow==13.0.0
cat > "$folder/read.py" <<'P'
import importlib.metadata
import io
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

by = sys.argv[1]
names = ("tensorflow-datasets", "pillow", *(["opencv-python-headless"] if by == "OpenCV" else []))
print(*(f"{name} {importlib.metadata.version(name)}" for name in names))


def encoded(image: Image.Image, suffix: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


classes = np.array([[0, 1], [2, 1]], np.uint8)
palette = Image.fromarray(classes)
palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
photo = Image.fromarray(np.full((2, 2, 3), (200, 100, 50), np.uint8))
clear = photo.copy()
clear.putalpha(255)
deep = Image.fromarray(np.full((2, 2), 0x1234, np.uint16))
images = {  # what it is, channels that the feature declares, its bytes
    "grey map": (1, encoded(Image.fromarray(classes))),
    "map with a palette": (1, encoded(palette)),
    "mask of one bit": (1, encoded(Image.fromarray(classes == 1))),
    "map of 16 bits, 0x1234": (1, encoded(deep)),
    "RGB photo": (3, encoded(photo)),
    "photo with transparency": (3, encoded(clear)),
    "CMYK photo": (3, encoded(photo.convert("CMYK"), "JPEG")),
}
seen = {}
for name, (channels, stored) in images.items():
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, channels))})
    image = features.deserialize_example_np(features.serialize_example({"image": stored}))["image"]
    seen[name] = image
    print(f"by {by}: {name}, declared (h, w, {channels}): shape {image.shape}, {image.tolist()}")
value, pixels = seen["mask of one bit"].max(), seen["map with a palette"]
expected = {"Pillow": (1, 1, 4), "OpenCV": (3, 255, 3)}[by]
changed = (pixels.shape[-1], value, seen["CMYK photo"].shape[-1]) != expected
if by == "Pillow":
    changed |= not np.array_equal(pixels[..., 0], classes)
else:
    changed |= pixels[0, 1].tolist() != [128, 0, 0]
changed |= not np.array_equal(seen["grey map"][..., 0], classes) or seen["photo with transparency"].shape[-1] != 4
changed |= not np.array_equal(seen["RGB photo"], np.asarray(photo))
changed |= set(seen["map of 16 bits, 0x1234"].flat) != {0x34}
sys.exit("The behaviour has changed." if changed else 0)
P
"$folder/venv/bin/python" "$folder/read.py" Pillow
"${install[@]}" opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" "$folder/read.py" OpenCV
