"""What lies in the folder of a step and in that of an exported model: arrays, and beside them their description."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from prismer_jax import config as configs
from prismer_jax.checkpoint import arrays
from prismer_jax.errors import UserError
from prismer_jax.files import storage

WEIGHTS = "weights"  # the folder of arrays in an export
ITEM = "default"  # and in a step, called as Orbax's CheckpointManager calls it; version 0.1 had none there
DESCRIPTION = "config.json"


def describe(folder: pathlib.Path, config: Mapping[str, Any], files: Mapping[str, storage.PathLike | bytes]) -> None:
    """Writes beside arrays what a program needs to use them; see `exports.export`."""
    for name, source in files.items():
        if pathlib.Path(name).name != name:
            raise ValueError(f"{name!r} must be a plain file name")
        storage.write(folder / name, source if isinstance(source, bytes) else pathlib.Path(source).read_bytes())
    storage.write_json(folder / DESCRIPTION, {**config, "versions": configs.provenance()["packages"]})


def saved_shapes(folder: storage.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {name: shape and type} of a step of a Checkpointer, an export, or its folder of arrays."""
    with arrays.readable(folder):
        return arrays.shapes_in(_arrays(storage.folder(folder)))


def read(folder: pathlib.Path, expected: arrays.Shapes) -> dict[str, Any]:
    """Returns {name: array} of what is expected of a step or an export; see `arrays.read`."""
    with arrays.readable(folder):
        return arrays.read(_arrays(folder), expected)


def _arrays(folder: pathlib.Path) -> pathlib.Path:
    """Returns where the arrays of an export or a step lie."""
    inside = folder / (WEIGHTS if is_export(folder) else ITEM)
    return inside if inside.is_dir() else folder


def is_export(folder: pathlib.Path) -> bool:
    """Returns whether a folder is an exported model, and no step."""
    return (folder / DESCRIPTION).is_file() and (folder / WEIGHTS).is_dir()


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns what a JSON file holds, {} if there is none.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json.loads(storage.read(os.fspath(file)))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{file} is damaged: it is not JSON. Delete it, and keep the checkpoints beside it.") from None
