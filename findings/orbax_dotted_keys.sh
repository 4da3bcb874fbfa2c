#!/usr/bin/env bash
# Orbax stores a leaf under the keys on its way, joined by dots, and does not escape dots within a key: {"a.b": x, "a":
# {"b": y}} is saved without an error, and one of the two arrays is restored as both. Names of PyTorch
# ("layer.0.weight") beside a nested tree of the same names are such keys. Variables of prismer_jax are nested dicts
# whose keys hold no dots.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'P'
import importlib.metadata
import sys

import numpy as np
import orbax.checkpoint as ocp

print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))


def restored(folder: str, tree: dict) -> dict:
    """Returns a tree after a save and a restore."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder)


def shown(tree: dict) -> dict:
    return {key: shown(value) if isinstance(value, dict) else value.tolist() for key, value in tree.items()}


def both(first: str, second: tuple[str, str]) -> dict:
    return {first: np.array([1.0, 2.0]), second[0]: {second[1]: np.array([3.0, 4.0])}}


dots, other = both("layer.weight", ("layer", "weight")), both("layer_weight", ("layer", "weight"))
dots_back, other_back = (shown(restored(f"{sys.argv[1]}/{i}", tree)) for i, tree in enumerate((dots, other)))
print("saved:   ", shown(dots), "\nrestored:", dots_back)
print("saved:   ", shown(other), "\nrestored:", other_back)
same = dots_back["layer.weight"] == dots_back["layer"]["weight"]
sys.exit(0 if same and other_back == shown(other) else "The behaviour has changed.")
P
