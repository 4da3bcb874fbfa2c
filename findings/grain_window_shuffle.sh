#!/usr/bin/env bash
# Grain's WindowShuffleMapDataset loses records and repeats others where the window does not divide the dataset: the
# last, shorter window is shuffled as if it were whole, and indices behind the end begin at the front again. The length
# stays right, so that nothing tells. prismer_jax/input.py shuffles whole datasets.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import grain.python as grain

print("grain", importlib.metadata.version("grain"))


def epoch(records: int, window: int, seed: int) -> list[int]:
    """Returns one epoch of the records 0, 1, ..., shuffled within windows."""
    dataset = grain.experimental.WindowShuffleMapDataset(grain.MapDataset.range(records), window_size=window, seed=seed)
    return [int(dataset[i]) for i in range(len(dataset))]


print("10 records in windows of 4, seed 1:", epoch(10, 4, 1))
missing = {
    (records, window): [records - len(set(epoch(records, window, seed))) for seed in range(20)]
    for records, window in ((12, 4), (10, 4), (10, 3))
}
for (records, window), counts in missing.items():
    print(f"{records} records in windows of {window}: records missing from an epoch, by seed 0 to 19: {counts}")
whole = not any(missing[12, 4])
lossy = sum(missing[10, 4]) > 10 and sum(missing[10, 3]) > 10
sys.exit(0 if whole and lossy else "The behaviour has changed.")
P
