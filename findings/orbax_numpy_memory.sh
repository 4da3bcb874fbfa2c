#!/usr/bin/env bash
# Orbax's save_concurrent_gb limits how much of a checkpoint is in memory while it is written, but not of NumPy's arrays:
# they are all copied before the first is written. A model that lies in mapped files because it is larger than the memory
# cannot be saved so, whatever the limit. A NumpyHandler(deepcopy_host_arrays=False), since 0.12.5, copies nothing;
# prismer_jax exports with it (prismer_jax/checkpoint/arrays.py, tools/convert.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder" && JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import pathlib
import sys
import tracemalloc

import jax
import numpy as np
import orbax.checkpoint as ocp

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("orbax-checkpoint", "jax")))
COUNT, SIZE = 16, 1 << 27  # bytes of each
arrays = {f"a{i}": np.memmap(f"a{i}", np.uint8, "w+", shape=(SIZE,)) for i in range(COUNT)}
print(f"{COUNT * SIZE / 2**30:.2f} GiB in {COUNT} mapped files, save_concurrent_gb=1")


def gib(name, numpy_handler):
    """Returns what NumPy allocates while the arrays are saved."""
    handlers = (np.ndarray, numpy_handler), (jax.Array, ocp.type_handlers.ArrayHandler())
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, use_compression=False, type_handler_registry=registry)
    tracemalloc.start()
    with ocp.Checkpointer(handler) as writer:
        writer.save(pathlib.Path(name).absolute(), args=ocp.args.PyTreeSave(arrays))
    peak = tracemalloc.get_traced_memory()[1] / 2**30
    tracemalloc.stop()
    return peak


copies = gib("as it is", ocp.type_handlers.NumpyHandler())
without = gib("without copies", ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
print(f"arrays of NumPy allocated meanwhile: {copies:.2f} GiB; with deepcopy_host_arrays=False {without:.2f} GiB")
sys.exit(0 if copies > 1.9 and without < 0.1 else "The behaviour has changed.")
P
