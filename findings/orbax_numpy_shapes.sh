#!/usr/bin/env bash
# Orbax refuses to restore an array into a target of another shape, "Truncating/padding is disabled", but only where the
# target is an array of JAX's. Into a NumPy array, be it of StandardCheckpointer or of the newer v1.load, it restores
# whatever shape the checkpoint has: a head of 10 classes comes back with the 1,000 of another run, and a target of 8
# rows with 5. The type is the target's, by a cast that says nothing: ids beyond 2^31 are other ids in int32, and floats
# lose their fraction in integers; that is so for JAX's arrays, too. The tree's structure is compared. Seen with
# orbax-checkpoint 0.12.8. prismer_jax compares shapes and types with the checkpoint's own before it restores
# (prismer_jax/checkpoint/arrays.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - "$folder" 2> "$folder/log" <<'P' || { tail "$folder/log"; exit 1; }
import importlib.metadata
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.experimental import v1

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("orbax-checkpoint", "jax")))
path, checkpointer = f"{sys.argv[1]}/checkpoint", ocp.StandardCheckpointer()
checkpointer.save(path, {"head": np.arange(5.0, dtype=np.float32), "ids": np.array([2**40 + 7, 3])})
checkpointer.wait_until_finished()
v1.save(f"{path}_v1", {"head": np.arange(5.0, dtype=np.float32), "ids": np.array([2**40 + 7, 3])})
ways = {"StandardCheckpointer": lambda target: checkpointer.restore(path, target)}
ways["v1"] = lambda target: v1.load(f"{path}_v1", target)


def restored(way, head, ids):
    try:
        return way({"head": head, "ids": ids})
    except ValueError as error:
        return str(error)


changed = False
for name, way in ways.items():
    ids = np.zeros(2, np.int64)
    for rows in (3, 8):
        result = restored(way, jnp.zeros(rows), ids)
        raised = isinstance(result, str) and "not compatible with the stored shape" in result
        print(f"{name}: stored (5,), target of JAX's ({rows},):", "refused" if raised else result["head"].shape, end=", ")
        result = restored(way, np.zeros(rows, np.float32), ids)
        taken = not isinstance(result, str) and result["head"].shape == (5,)
        print(f"target of NumPy's ({rows},):", f"restored as {result['head'].shape}" if taken else result)
        changed |= not (raised and taken)
    result = restored(way, np.zeros(5, np.int8), np.zeros(2, np.int32))
    print(f"{name}: ids 2^40 + 7 and 3 into a target of int32: {result['ids'].tolist()}")
    changed |= result["ids"].tolist() != [7, 3]
sys.exit("The behaviour has changed." if changed else 0)
P
