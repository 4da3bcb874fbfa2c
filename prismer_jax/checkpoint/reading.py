"""Models in use, read: whatever holds one is found, exported, or among the checkpoints of a run."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from prismer_jax import tree
from prismer_jax.checkpoint import disk, layout
from prismer_jax.checkpoint.steps import Checkpointer, backend
from prismer_jax.errors import UserError
from prismer_jax.files import storage


def find(path: storage.PathLike) -> pathlib.Path:
    """Returns the folder that `load_export` reads, given any of: an export; a workdir; its checkpoints; one of these.

    A workdir's export is preferred to its latest checkpoint.

    Raises:
      UserError: there is nothing of the kind.
    """
    path = storage.folder(path)
    for candidate in (path, path / "export"):
        if not candidate.exists() and layout.is_export(old := disk.beside(candidate, "old")):
            return old  # a process was killed between the two renames of `export`
        if layout.is_export(candidate):
            return candidate
    if backend(path).is_step(path):
        return path
    for candidate in (path, path / "checkpoints"):
        if (step := Checkpointer(candidate).latest_step()) is not None:
            return candidate / str(step)
    what = "does not exist" if not path.exists() else "is no folder of that kind"
    raise UserError(
        f"{path} {what}: expected an exported model (config.json and {layout.WEIGHTS}/), or a workdir with export/ or "
        "checkpoints/ in it."
    )


def load_export(
    path: storage.PathLike, shardings: Callable[[Any], Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads an exported model, or the variables in a checkpoint, which are all but its 'opt' and 'step'.

    Args:
      path: whatever `find` accepts.
      shardings: from the nested dict of ShapeDtypeStructs to that of shardings; None gives NumPy arrays.

    Returns:
      (variables, config): nested dicts. config['folder'] is where the files lie that were exported; it is all there is
      for a checkpoint saved without a config.

    Raises:
      UserError: there is nothing of the kind, or it cannot be read.
    """
    config, folder = description(path), find(path)
    shapes = {name: x for name, x in layout.saved_shapes(folder).items() if is_variable(name)}
    if shardings is not None:
        by_name = tree.flatten(shardings(tree.unflatten(shapes)))
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_name[n]) for n, x in shapes.items()}
    return tree.unflatten(layout.read(folder, shapes)), config


def description(path: storage.PathLike) -> dict[str, Any]:
    """Returns the config that lies beside an exported model or a checkpoint, and its 'folder'; see `load_export`."""
    folder = find(path)
    home = folder if layout.is_export(folder) else folder.parent
    home = storage.remote().copies(os.fspath(home)) if storage.is_remote(home) else home
    try:
        config = json.loads((home / layout.DESCRIPTION).read_text()) if (home / layout.DESCRIPTION).exists() else {}
    except ValueError:
        raise UserError(f"{home / layout.DESCRIPTION} is damaged: it is not JSON. Export the model again.") from None
    return {**config, "folder": str(home)}


def is_variable(name: str) -> bool:
    """Returns whether a name of a state is one of the model's variables."""
    return re.match(r"(opt|step|params/targets)(/|$)", name) is None  # the heads of training.targets stay behind
