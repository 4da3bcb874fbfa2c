#!/usr/bin/env bash
# Grain's IndexSampler with ShardOptions loses records where the number of records is no multiple of the number of
# shards, although drop_remainder is False: the last of every larger shard is read by nobody. prismer_jax/input.py
# slices the dataset itself (dataset[process::processes]) and loses none.
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


def shards(records: int, count: int) -> list[list[int]]:
    """Returns what each of `count` processes reads of the records 0, 1, ... in one epoch, in order."""
    read = []
    for index in range(count):
        options = grain.ShardOptions(index, count, drop_remainder=False)
        sampler = grain.IndexSampler(records, shard_options=options, shuffle=False, num_epochs=1)
        read.append([int(record) for record in grain.DataLoader(data_source=range(records), sampler=sampler)])
    return read


cases = {(records, count): shards(records, count) for records, count in ((8, 2), (7, 2), (11, 4))}
for (records, count), read in cases.items():
    lost = sorted(set(range(records)) - {record for shard in read for record in shard})
    print(f"{records} records in {count} shards: {read}, read by none: {lost}")
expected = {
    (8, 2): [[0, 1, 2, 3], [4, 5, 6, 7]],
    (7, 2): [[0, 1, 2], [4, 5, 6]],
    (11, 4): [[0, 1], [3, 4], [6, 7], [9, 10]],
}
sys.exit(0 if cases == expected else "The behaviour has changed.")
P
