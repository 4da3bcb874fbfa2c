#!/usr/bin/env bash
# tensorboardX names an event file by the second and the host alone, and opens it anew: two writers of one folder
# (a run that is resumed at once, or two processes) that start within the same second share one file, and the scalars of
# the first are gone. TensorBoard's own writer adds the process and a counter to the name; prismer_jax/metrics.py does alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tensorboardX==2.6.5 protobuf==6.33.0 numpy==2.2.6
"$folder/venv/bin/python" - "$folder" <<'P'
import glob
import importlib.metadata
import sys
import time

from tensorboardX import SummaryWriter

print("tensorboardX", importlib.metadata.version("tensorboardX"))


def write(folder: str, pause: float) -> tuple[int, bool]:
    """Writes a scalar with each of two writers; returns the number of files and whether the first scalar is in one."""
    time.sleep(1.05 - time.time() % 1)  # just after the start of a second
    for number in range(2):
        writer = SummaryWriter(folder)
        writer.add_scalar(f"scalar_of_writer_{number}", 1.0, number)
        writer.close()
        time.sleep(pause)
    files = glob.glob(f"{folder}/events*")
    return len(files), any(b"scalar_of_writer_0" in open(file, "rb").read() for file in files)


together, apart = write(f"{sys.argv[1]}/together", 0.0), write(f"{sys.argv[1]}/apart", 1.1)
print("two writers within a second: files, first scalar is there:", together)
print("two writers more than a second apart:", apart)
sys.exit(0 if together == (1, False) and apart == (2, True) else "The behaviour has changed.")
P
