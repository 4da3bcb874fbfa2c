#!/usr/bin/env bash
# A kernel that lies in parts on the chips of a TPU slice, as fully sharded training has it, is gathered where it is used:
# each chip should receive the other chips' parts, the kernel's size once. In a scan over stacked layers, on 256 chips,
# XLA does so only if a part has 64 KiB or more. Smaller ones are put into an array of zeros on each chip and added up, an
# all-reduce, which takes twice the bytes; on 128 chips, or on 16 of the same 256, small parts are gathered, too. Nothing
# is said. Compiled ahead of time for a described v5e:16x16 with jax 0.10.2 and libtpu 0.0.42; no TPU is needed. A plan of
# prismer_jax shows it (docs/scaling.md says what it costs there).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42 numpy==2.4.6
cd "$folder" && TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 "$folder/venv/bin/python" - 2>"$folder/log" <<'P' || { tail -n 20 "$folder/log" >&2; exit 1; }
import re
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

jax.config.update("jax_platforms", "cpu")
print("jax", jax.__version__, "libtpu", metadata.version("libtpu"))
devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16").devices)


def messages(parts, width):
    """Returns the messages between chips in a scan of 8 residual layers of two kernels [width, width] in parts."""
    mesh = Mesh(devices.reshape(-1, parts), ("data", "fsdp"))

    def placed(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    rows = placed(("data", "fsdp"))
    x = jax.ShapeDtypeStruct((4096, width), jnp.bfloat16, sharding=rows)
    kernels = [jax.ShapeDtypeStruct((8, width, width), jnp.bfloat16, sharding=placed(None, "fsdp"))] * 2

    def layer(x, kernels):
        up, down = (jax.lax.with_sharding_constraint(kernel, placed()) for kernel in kernels)
        return x + jax.nn.gelu(x @ up) @ down, None

    step = jax.jit(lambda x, kernels: jax.lax.scan(layer, x, kernels)[0], out_shardings=rows)
    text = step.lower(x, kernels).compile().as_text()
    return sorted(set(re.findall(r"[ )](all-gather|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(", text)))


summed, gathered = ["all-reduce"], ["all-gather"]
expected = {(256, 2560): summed, (256, 3072): gathered, (128, 1024): gathered, (16, 2560): gathered}
found = {case: messages(*case) for case in expected}
for (parts, width), kinds in found.items():
    print(f"kernels in {parts} parts of {2 * width * width // parts / 1024:.0f} KiB: {', '.join(kinds)}")
sys.exit(0 if found == expected else "The behaviour has changed.")
P
