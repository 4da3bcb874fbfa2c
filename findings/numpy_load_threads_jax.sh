#!/usr/bin/env bash
# NumPy reads the header of an array in a file (.npy, each array of an .npz) with Python's ast.literal_eval. Up to Python
# 3.12 the interpreter counts the depth of the tree that it makes in one number for all threads, which is safe as long as
# no other thread runs in between. JAX, once it is imported, adds a callback to garbage collection that lets other threads
# run, and making a tree can set off a collection. So two threads that call np.load on whole files, in a process that has
# imported JAX, now and then end in "SystemError: AST constructor recursion depth mismatch"; without JAX, or with a lock
# around np.load, they do not. Threads are switched often here, so that it takes a second and not an evening. The mistake
# in Python's count is python/cpython#106905. prismer_jax reads such files one at a time where threads do (label_files.py),
# and a test holds it. Seen with Python 3.11.7; it needs a Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/load.py" <<'P'
import contextlib
import io
import sys
import threading
import time

import numpy as np

with_jax, with_lock = (word == "yes" for word in sys.argv[1:])
if with_jax:
    import jax.numpy as jnp

    jnp.zeros(1).block_until_ready()
buffer = io.BytesIO()
np.savez(buffer, features=np.zeros((2, 64), np.float16), words=np.array(["to", "let"]))
lock = threading.Lock() if with_lock else contextlib.nullcontext()
errors, end = [], time.monotonic() + 20


def read():
    while time.monotonic() < end and not errors:
        try:
            with lock, np.load(io.BytesIO(buffer.getvalue()), allow_pickle=False) as file:
                assert file["features"].shape == (2, 64) and file["words"].shape == (2,)
        except SystemError as error:
            errors.append(str(error).split(" (")[0])


sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
said = f"{'with' if with_jax else 'without'} JAX, {'with' if with_lock else 'without'} a lock"
print(f"8 threads that load, {said}: {errors[0] if errors else 'no error'}")
sys.exit(0 if bool(errors) == (with_jax and not with_lock) else "The behaviour has changed.")
P
"$folder/venv/bin/python" -c 'import sys; from importlib.metadata import version as v; print("Python", sys.version.split()[0], "numpy", v("numpy"), "jax", v("jax"))'
for arguments in "yes no" "no no" "yes yes"; do
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/load.py" $arguments
done
