#!/usr/bin/env bash
# Hugging Face's loader of webdataset tars takes the fields of all samples from the first five of the first tar: a
# caption that only later samples have, a key of their JSON, or a photo with another suffix (.jpg after five .png) is
# dropped or None, without a word; where the first five differ among themselves, it raises. prismer_jax/datasets/tars.py
# looks at every sample.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0 numpy==2.4.6
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - "$folder" <<'P'
import importlib.metadata
import io
import json
import sys
import tarfile

import datasets
from PIL import Image

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("datasets", "pyarrow")))
datasets.disable_progress_bars()
buffer = io.BytesIO()
Image.new("RGB", (4, 4)).save(buffer, "png")
PHOTO = buffer.getvalue()


def load(name: str, samples: list[dict[str, bytes]]) -> datasets.Dataset:
    """Writes a tar of samples, each {suffix: content}, and loads it."""
    path = f"{sys.argv[1]}/{name}.tar"
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return datasets.load_dataset("webdataset", data_files=path, split="train", cache_dir=f"{sys.argv[1]}/cache")


def late(number: int, first: int) -> bool:
    return number >= first


texts = [
    load(f"text{first}", [{"png": PHOTO} | ({"txt": b"a cat"} if late(i, first) else {}) for i in range(10)])
    for first in (0, 5)
]
described = [{"caption": "a cat"} | ({"width": 4} if late(i, 5) else {}) for i in range(10)]
keys = load("keys", [{"png": PHOTO, "json": json.dumps(entry).encode()} for entry in described])
suffixes = load("suffixes", [{"jpg" if late(i, 5) else "png": PHOTO, "txt": b"a cat"} for i in range(10)])
print("captions in all samples, columns:", texts[0].column_names)
print("captions from the sixth sample on, columns:", texts[1].column_names)
print("a JSON key from the sixth sample on, JSON of the last sample:", keys[9]["json"])
print("jpg instead of png from the sixth sample on, photos:", [type(photo).__name__ for photo in suffixes["png"]])
changed = "txt" not in texts[0].column_names or "txt" in texts[1].column_names or keys[9]["json"] != {"caption": "a cat"}
changed |= [photo is None for photo in suffixes["png"]] != [False] * 5 + [True] * 5
sys.exit("The behaviour has changed." if changed else 0)
P
