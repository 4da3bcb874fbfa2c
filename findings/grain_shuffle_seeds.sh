#!/usr/bin/env bash
# Grain's shuffle(seed) gives each epoch an order of its own by adding the epoch's number to the seed. So the second
# epoch with seed 0 is the first one with seed 1, record by record, and the third is the first with seed 2: three runs
# with seeds 0, 1 and 2, as one makes them for an error bar, train for 10 epochs in 12 orders instead of 30, one epoch
# apart. IndexSampler(shuffle=True, seed) does alike, and its random numbers for augmentation at step i with seed 1 are
# those at step i + 1 with seed 0. With dataset.seed(seed).shuffle(), where Grain makes a seed of its own of that and
# the place in the chain, no two orders are equal. Seen with grain 0.2.18. prismer_jax shuffles by dataset.seed, of a
# number that is hashed from the run's seed and the data set's place in the mixture (prismer_jax/input.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

import grain

print("grain", importlib.metadata.version("grain"))
COUNT, EPOCHS, SEEDS = 1000, 10, (0, 1, 2)


def cut(records):
    """Returns the order of each epoch."""
    return [tuple(int(record) for record in records[i * COUNT : (i + 1) * COUNT]) for i in range(EPOCHS)]


def sampler(seed):
    shards = grain.sharding.NoSharding()
    return grain.samplers.IndexSampler(COUNT, shards, shuffle=True, num_epochs=EPOCHS, seed=seed)


records = grain.MapDataset.range(COUNT)
ways = {
    "shuffle(seed)": lambda seed: list(records.shuffle(seed=seed).repeat(EPOCHS)),
    "IndexSampler(seed)": lambda seed: [sampler(seed)[i].record_key for i in range(COUNT * EPOCHS)],
    "seed(seed).shuffle()": lambda seed: list(records.seed(seed).shuffle().repeat(EPOCHS)),
}
distinct, shifted = {}, {}
for name, way in ways.items():
    runs = [cut(way(seed)) for seed in SEEDS]
    distinct[name] = len({order for run in runs for order in run})
    shifted[name] = all(runs[s][1:] == runs[s + 1][:-1] for s in range(2))
    print(f"{name}: 3 runs of {EPOCHS} epochs have {distinct[name]} different orders of 30", end=", ")
    print("each one's second epoch is the next seed's first" if shifted[name] else "no run is another, shifted")
draws = [[int(sampler(seed)[i].rng.integers(10**6)) for i in range(6)] for seed in (0, 1)]
print(f"IndexSampler's random numbers at six steps: {draws[0]} with seed 0, {draws[1]} with seed 1")
changed = distinct != {"shuffle(seed)": 12, "IndexSampler(seed)": 12, "seed(seed).shuffle()": 30}
changed |= list(shifted.values()) != [True, True, False] or draws[0][1:] != draws[1][:-1]
sys.exit("The behaviour has changed." if changed else 0)
P
