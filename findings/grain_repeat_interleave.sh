#!/usr/bin/env bash
# Grain's RepeatIterDataset says that each epoch is identical. Where it repeats an InterleaveIterDataset of more
# datasets than are read at a time, the third epoch and all later ones leave some of them out and read others twice, and
# nothing is said. ParquetIterDataset reads 16 files at a time: of 20 files, four are never seen again. Resuming loses
# data as well, however many are read at a time: from a state of the second epoch or later, the rest of its epoch is
# skipped, or a part of it. Worker processes (mp_prefetch) are interleaved so, too. The iterator writes into the list of
# places that it was reset with, the same for all epochs; and a dataset that has ended once counts as ended in every
# later state. Seen with grain 0.2.16, 0.2.17 and 0.2.18; 0.2.15 is right. prismer_jax repeats a MapDataset
# (prismer_jax/input.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6 pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'P'
import copy
import gc
import importlib.metadata
import sys

import pyarrow
import pyarrow.parquet
from grain import MapDataset, experimental

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("grain", "pyarrow")))


def by_epoch(dataset, epochs=4):
    """Returns the records of each epoch, where all epochs are as long as the first."""
    records = [int(x["id"] if isinstance(x, dict) else x) for x in experimental.RepeatIterDataset(dataset, epochs)]
    size = len(records) // epochs
    return [records[start : start + size] for start in range(0, len(records), size)]


parts = [MapDataset.range(10 * i, 10 * i + 3).to_iter_dataset() for i in range(3)]
results = {}
for at_a_time in (3, 2):
    results[at_a_time] = epochs = by_epoch(experimental.InterleaveIterDataset(parts, cycle_length=at_a_time))
    for number, epoch in enumerate(epochs, 1):
        print(f"3 datasets, {at_a_time} at a time, epoch {number}: {epoch}")
whole = [0, 10, 20, 1, 11, 21, 2, 12, 22], [0, 10, 1, 11, 2, 12, 20, 21, 22]
lossy = [20, 10, 21, 11, 22, 12, 20, 21, 22]
changed = results != {3: [whole[0]] * 4, 2: [whole[1], whole[1], lossy, lossy]}

files = [f"{number:02}.parquet" for number in range(20)]
for number, name in enumerate(files):
    pyarrow.parquet.write_table(pyarrow.table({"id": [2 * number, 2 * number + 1]}), name)
for count in (16, 20):
    records = by_epoch(experimental.ParquetIterDataset(files[:count]), epochs=5)
    seen = [len(set(epoch)) for epoch in records]
    print(f"{count} Parquet files of 2 records each, different records by epoch: {seen}")
    changed |= seen != ([32] * 5 if count == 16 else [40, 40, 32, 32, 32])

dataset = experimental.RepeatIterDataset(experimental.InterleaveIterDataset(parts, cycle_length=3), 2)
iterator, records, states = iter(dataset), [], []
for _ in range(18):
    states.append(copy.deepcopy(iterator.get_state()))
    records.append(int(next(iterator)))
for step in (4, 12):
    resumed = iter(dataset)
    resumed.set_state(states[step])
    left = [int(x) for x in resumed]
    print(f"3 datasets in 2 epochs: after {step} records follow {records[step:]}; when resumed there, {left}")
    changed |= left != (records[step:] if step == 4 else [])
del iterator, resumed
gc.collect()  # closes the iterators before Python unloads what they close themselves with
sys.exit("The behaviour has changed." if changed else 0)
P
