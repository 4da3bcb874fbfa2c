#!/usr/bin/env bash
# Batches of Grain's worker processes lie in shared memory, which goes when the array does. Where JAX made arrays of
# them on a CPU, it does not go with those: JAX keeps the NumPy arrays until Python next collects garbage, also once its
# own arrays are deleted; and Grain then frees them in a thread that the exit does not wait for. A program that deletes
# every batch and closes its iterator thus ends in a warning of leaked shared memory.
# prismer_jax/input.py collects garbage, and waits for that thread, at exit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/shared.py" <<'P'
import gc
import importlib.metadata
import pathlib
import sys
import time

import grain.python as grain
import jax
import numpy as np
from absl import flags

memory = pathlib.Path("/dev/shm")


def row(number):
    return np.full(65536, number, np.int32)


def blocks(before):
    """Returns how many blocks of shared memory there are that were not there before."""
    return len({path.name for path in memory.glob("psm_*")} - before)


def main(on_device, collects):
    before = {path.name for path in memory.glob("psm_*")}
    dataset = grain.MapDataset.range(40).map(row).batch(4).to_iter_dataset()
    iterator = iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=1)))
    batches = [next(iterator) for _ in range(5)]
    if on_device:
        batches = jax.block_until_ready(jax.device_put(batches, jax.devices("cpu")[0]))
    iterator.close()
    held = blocks(before)
    del batches, iterator
    time.sleep(1)
    left = blocks(before)
    if collects:
        gc.collect()
        time.sleep(1)
    print(held, left, blocks(before))


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    gc.disable()  # for the moment of collection to be no accident
    main("device" in sys.argv, "collect" in sys.argv)
P
cd "$folder"
venv/bin/python -c "
import importlib.metadata
print(*(f'{name} {importlib.metadata.version(name)}' for name in ('grain', 'jax', 'numpy')), sep=', ')"
run() {
  seen=$(JAX_PLATFORMS=cpu venv/bin/python shared.py "$@" 2> warnings)
  grep -q "leaked shared_memory" warnings && warned=warned || warned=quiet
  printf '%-16s blocks held, left a second after, left at the end: %s; exit: %s\n' "${*:-numpy}" "$seen" "$warned"
  outcomes+="$seen $warned|"
}
outcomes=
run
run device
run device collect
[ "$outcomes" = "5 0 0 quiet|5 5 5 warned|5 5 0 quiet|" ] || {
  echo "The behaviour has changed."
  exit 1
}
