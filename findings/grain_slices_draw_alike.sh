#!/usr/bin/env bash
# Grain's random_map draws by the place of a record in the dataset that it stands behind. Where that is a process's part
# of the records, dataset[process::processes], as is usual, the place counts within the part: at each step all processes
# draw the same numbers for their different photos, so that on 8 hosts one flip or crop is chosen for 8 photos, and of a
# batch of one photo a host all are flipped or none. Each photo alone looks right. Grain's DataLoader with ShardOptions
# draws by the record, and so does random_map ahead of the slice. prismer_jax/input.py slices behind it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
cat > "$folder/slices.py" <<'P'
import importlib.metadata
import sys

import grain.python as grain
import numpy as np

print("grain", importlib.metadata.version("grain"))
RECORDS, PROCESSES = 4000, 8


class Flip(grain.RandomMapTransform):
    def random_map(self, element: int, rng: np.random.Generator) -> bool:
        return bool(rng.random() < 0.5)


def behind(process: int) -> list[bool]:
    return list(grain.MapDataset.range(RECORDS).seed(0).shuffle()[process::PROCESSES].random_map(Flip()))


def ahead(process: int) -> list[bool]:
    return list(grain.MapDataset.range(RECORDS).seed(0).shuffle().random_map(Flip())[process::PROCESSES])


def loader(process: int) -> list[bool]:
    shard = grain.ShardOptions(shard_index=process, shard_count=PROCESSES)
    sampler = grain.IndexSampler(RECORDS, shard_options=shard, shuffle=True, num_epochs=1, seed=0)
    return list(grain.DataLoader(data_source=range(RECORDS), sampler=sampler, operations=[Flip()]))


alike = {}
for way in (behind, ahead, loader):
    flips = np.array([way(process) for process in range(PROCESSES)])
    alike[way.__name__] = float((flips == flips[0]).all(0).mean())
    flipped = flips.sum(0)
    print(f"{way.__name__}: of {PROCESSES} photos of a step, {flipped[:10].tolist()}, ... are flipped;", end=" ")
    print(f"all or none in {alike[way.__name__]:.1%} of the steps")
changed = alike["behind"] != 1 or alike["ahead"] > 0.05 or alike["loader"] > 0.05
sys.exit("The behaviour has changed." if changed else 0)
P
cd "$folder"
venv/bin/python slices.py
