#!/usr/bin/env bash
# Grain's batches hold other numbers with worker processes than without, where examples differ in their type. Without
# them, or with one, np.stack takes the wider type. With two or more, the batch is made in shared memory, in the type of
# its first example, and the others are cast into that without a word: a depth map of 16 bits behind one of 8 bits keeps
# its lowest 8 bits, and large float32 are infinite behind float16. Seen with grain 0.2.17 and 0.2.18; 0.2.16 makes no
# batches in shared memory. prismer_jax stacks examples itself, and says so where their types differ
# (prismer_jax/input.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
cat > "$folder/batches.py" <<'P'
import collections
import importlib.metadata
import sys

import grain
import numpy as np
from absl import flags


def example(number):
    """Examples 2, 3, 6, 7, ... are of a camera with wider maps."""
    if number // 2 % 2:
        return {"depth": np.full((2, 2), 40000, np.uint16), "metres": np.full((2, 2), 1e5, np.float32)}
    return {"depth": np.full((2, 2), 200, np.uint8), "metres": np.full((2, 2), 1, np.float16)}


def main():
    flags.FLAGS.mark_as_parsed()
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("grain", "numpy")))
    results = {}
    for workers in (0, 1, 2):
        dataset = grain.MapDataset.range(16).map(example).to_iter_dataset().batch(4)
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        batches = list(dataset)
        for name in ("depth", "metres"):
            types = {batch[name].dtype.name for batch in batches}
            counts = collections.Counter(value for batch in batches for value in batch[name][:, 0, 0].tolist())
            results[workers, name] = types, dict(counts)
            print(f"{workers} workers: {name} of {' and '.join(types)}, maps by their value {dict(counts)}")
    right = {"depth": ({"uint16"}, {200: 8, 40000: 8}), "metres": ({"float32"}, {1.0: 8, 1e5: 8})}
    wrong = {"depth": ({"uint8"}, {200: 8, 40000 % 256: 8}), "metres": ({"float16"}, {1.0: 8, float("inf"): 8})}
    changed = any(found != (wrong if workers == 2 else right)[name] for (workers, name), found in results.items())
    sys.exit("The behaviour has changed." if changed else 0)


if __name__ == "__main__":
    main()
P
"$folder/venv/bin/python" -W ignore "$folder/batches.py"
