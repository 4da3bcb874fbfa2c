#!/usr/bin/env bash
# Grain's ConcatThenSplitIterDataset packs several features at a time, say the words and the patches of photos with
# captions. An example whose patches are spread over three rows or more has its words in the first row, where they fit,
# and once more in the third, the fifth and so on, with segment ids and positions like any others, so that a model is
# trained on them two or three times. Patches that fill two rows, or one feature alone, are split right. Documented is
# that an example is split and what remains of it stays for the next row. Where to split a feature that fits is counted
# from the start of what remains of it, and cut from the start of the whole. Seen with grain 0.2.12 to 0.2.18.
# prismer_jax splits no example when it packs (prismer_jax/datasets/packing.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import numpy as np
from grain import MapDataset, experimental

print("grain", importlib.metadata.version("grain"))


def by_row(examples, **sizes):
    """Packs the examples into rows of these sizes; returns what each row holds of each feature, without padding."""
    dataset = MapDataset.source(examples).to_iter_dataset()
    rows = list(experimental.ConcatThenSplitIterDataset(dataset, length_struct=sizes))
    return {name: [row[name][row[f"{name}_segment_ids"] > 0].tolist() for row in rows] for name in sizes}


found = {}
for patches in (3, 7, 9, 20):
    example = {"words": np.arange(1, 4), "patches": np.arange(1, 1 + patches)}
    packed = by_row([example], words=4, patches=4)
    found[patches] = packed["words"]
    print(f"3 words and {patches} patches in rows of 4 and 4: words by row {packed['words']}", end=", ")
    print(f"patches by row {packed['patches']}")
alone = by_row([{"words": np.arange(1, 10)}], words=4)["words"]
print("9 words alone in rows of 4:", alone)

rng = np.random.default_rng(0)
captions = [{"words": 100 * i + np.arange(rng.integers(8, 20)), "patches": np.arange(196)} for i in range(50)]
words = sum(len(caption["words"]) for caption in captions)
packed = by_row(captions, words=32, patches=64)
counts = {name: sum(map(len, rows)) for name, rows in packed.items()}
print(f"50 captions of {words} words, each with 196 patches, in rows of 32 and 64: {counts} in the rows")
expected = {
    3: [[1, 2, 3]],
    7: [[1, 2, 3], []],
    9: [[1, 2, 3], [], [1, 2, 3]],
    20: [[1, 2, 3], [], [1, 2, 3], [], [1, 2, 3]],
}
changed = found != expected or alone != [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
changed |= counts["patches"] != 50 * 196 or counts["words"] < 1.5 * words
sys.exit("The behaviour has changed." if changed else 0)
P
