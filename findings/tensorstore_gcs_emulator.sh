#!/usr/bin/env bash
# TensorStore's driver for Google Cloud Storage reads and writes in gcp-storage-emulator, a server for tests on the same
# machine, and then cannot write on condition: whatever it reads there has the generation 0, as no header says another,
# and the generation that it has returned itself is "Malformed StorageGeneration" once it is handed back as a condition,
# for a read as for a write. OCDBT, in which Orbax keeps checkpoints, writes its manifest so: a checkpoint of three small
# arrays is saved and restored there, one of a small model is not, with that error. A write's own stamp is right.
# Seen with tensorstore 0.1.86 and gcp-storage-emulator 2026.7.19. The tests of prismer_jax have a server of their own
# that sends x-goog-generation and honours ifGenerationMatch (prismer_jax/files/bucket_test.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tensorstore==0.1.86 gcp-storage-emulator==2026.7.19
cat > "$folder/generations.py" <<'P'
import importlib.metadata
import os
import socket
import sys

from gcp_storage_emulator.server import create_server

with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
server = create_server("localhost", port, in_memory=True, default_bucket="bucket")
server.start()
os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://localhost:{port}"
os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"

import tensorstore as ts

store = ts.KvStore.open({"driver": "gcs", "bucket": "bucket", "path": "folder/"}).result()
written = store.write("key", b"value").result().generation
read = store.read("key").result()


def refusal(use):
    try:
        use().result()
    except ValueError as error:
        return str(error)
    return "none"


again = refusal(lambda: store.read("key", if_not_equal=read.stamp.generation))
replaced = refusal(lambda: store.write("key", b"other", if_equal=read.stamp.generation))
server.stop()
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("tensorstore", "gcp-storage-emulator")))
print(f"Written and read back: {read.value!r}. Generation of the write {written.hex()}, of the read {read.stamp.generation.hex()}.")
print(f"Read again unless it is of that generation: {again}. Write if it is: {replaced}.")
malformed = "Malformed StorageGeneration"
same = read.value == b"value" and malformed in again and malformed in replaced and read.stamp.generation != written
sys.exit(0 if same else "The behaviour has changed.")
P
cd "$folder"
venv/bin/python generations.py 2> "$folder/log" || { cat "$folder/log"; exit 1; }
