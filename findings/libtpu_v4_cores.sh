#!/usr/bin/env bash
# jax.experimental.topologies describes a TPU v4 with each of a chip's two cores as a device, which no machine shows:
# jax.make_mesh refuses the very devices, asking for one a chip. libtpu's chip configuration "megacore" has to be named.
# v5p, whose chips have two cores as well, is described with one device a chip. prismer_jax/planning/topologies.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1 numpy==2.4.6
export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-1 TPU_WORKER_HOSTNAMES=localhost JAX_PLATFORMS=cpu
"$folder/venv/bin/python" - 2> "$folder/noise" <<'P' || { tail -3 "$folder/noise"; exit 1; }
import importlib.metadata
import sys

import jax
from jax.experimental import topologies

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")), sep=", ")
seen = []
for name, more in (("v4:2x2x1", {}), ("v4:2x2x1", {"chip_config_name": "megacore"}), ("v5p:2x2x1", {})):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    try:
        said = f"a mesh of {jax.make_mesh((len(devices),), ('data',), devices=devices).size}"
    except AssertionError as error:
        said = str(error).partition(". Got")[0]
    print(f"{name} {more or 'as it comes'}: {len(devices)} devices on 4 chips; jax.make_mesh: {said}")
    seen.append((len(devices), said.startswith("a mesh")))
sys.exit(0 if seen == [(8, False), (4, True), (4, True)] else "The behaviour has changed.")
P
