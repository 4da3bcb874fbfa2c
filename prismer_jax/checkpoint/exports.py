"""Models in use: exported into a folder of their own, found, read, and loaded into the state of another run."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import sharding, tree
from prismer_jax.checkpoint import arrays, disk, layout
from prismer_jax.checkpoint.layout import PathLike
from prismer_jax.checkpoint.steps import Checkpointer, place
from prismer_jax.errors import UserError
from prismer_jax.files import storage

logger = logging.getLogger(__name__)


def export(
    directory: PathLike, variables: Any, config: Mapping[str, Any], files: Mapping[str, PathLike | bytes] | None = None
) -> None:
    """Writes a self-contained folder: config.json, the arrays, and copies of files such as the tokenizer's.

    The folder appears, or replaces an older export, when it is complete.

    Args:
      directory: of the export.
      variables: a tree of arrays; all processes must call this with their parts.
      config: what a program needs to use them (model, tokenizer, decoding ...), as JSON. Versions are added.
      files: {name in the folder: file to copy, or its content}.

    Raises:
      UserError: the folder exists and is no export, or cannot be written.
    """
    ocp = arrays.orbax()
    final, main = storage.folder(directory), jax.process_index() == 0
    if final.exists() and not layout.is_export(final) and not place(final).is_free(final):
        raise UserError(f"{final} exists and is no exported model; choose another folder or delete it.")
    with arrays.explained(f"Cannot write {final}"), place(final).replacing(final, main) as new:
        sharding.barrier("export")
        with ocp.Checkpointer(arrays.handler(alone=True)) as writer, jax.transfer_guard("allow"):
            writer.save(new / layout.WEIGHTS, args=ocp.args.PyTreeSave(arrays.nested(variables)))
        if main:
            layout.describe(new, config, files or {})
    sharding.barrier("exported")


def find(path: PathLike) -> pathlib.Path:
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
    if place(path).is_step(path):
        return path
    for candidate in (path, path / "checkpoints"):
        if (step := Checkpointer(candidate).latest_step()) is not None:
            return candidate / str(step)
    what = "does not exist" if not path.exists() else "is no folder of that kind"
    raise UserError(
        f"{path} {what}: expected an exported model (config.json and {layout.WEIGHTS}/), or a workdir with export/ or "
        "checkpoints/ in it."
    )


def load_export(path: PathLike, shardings: Callable[[Any], Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
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
    shapes = {name: x for name, x in layout.saved_shapes(folder).items() if _is_variable(name)}
    if shardings is not None:
        places = tree.flatten(shardings(tree.unflatten(shapes)))
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[n]) for n, x in shapes.items()}
    return tree.unflatten(layout.read(folder, shapes)), config


def description(path: PathLike) -> dict[str, Any]:
    """Returns the config that lies beside an exported model or a checkpoint, and its 'folder'; see `load_export`."""
    folder = find(path)
    home = folder if layout.is_export(folder) else folder.parent
    home = storage.remote().copies(os.fspath(home)) if storage.is_remote(home) else home
    try:
        config = json.loads((home / layout.DESCRIPTION).read_text()) if (home / layout.DESCRIPTION).exists() else {}
    except ValueError:
        raise UserError(f"{home / layout.DESCRIPTION} is damaged: it is not JSON. Export the model again.") from None
    return {**config, "folder": str(home)}


def load_into(
    state: Mapping[str, Any],
    path: PathLike,
    fresh: Sequence[str] = (),
    resize: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], Any]] | None = None,
    optional: Sequence[str] = (),
    pack: Mapping[str, Callable[[np.ndarray], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Returns the variables of a state with the values of an exported model, or of another run's checkpoint.

    Numbers with a fraction may be of another type in the file; they are converted.

    Args:
      state: initialised; its variables are everything but 'opt' and 'step'. Every leaf returned is placed like its own.
      path: whatever `find` accepts.
      fresh: regexes of whole names ('params/encoder/stems/.*'): what they match keeps its initial values and need not
        be in the file, or is in the file and need not be in the state.
      resize: {name: function of (saved array, expected shape)} of what may have another shape in the file, as position
        embeddings of another resolution have (see models.RESIZE).
      optional: regexes of names that keep their initial values if the file has none of them.
      pack: {name: function of the saved array -> {part: array}} of what the state may hold in parts, 'name/part'.

    Raises:
      UserError: there is nothing of the kind, a regex matches nothing, or the file and the state differ elsewhere.
    """
    folder = find(path)
    ours = {name: leaf for name, leaf in tree.flatten(state).items() if _is_variable(name)}
    saved = {name: shape for name, shape in layout.saved_shapes(folder).items() if _is_variable(name)}
    skipped = tree.first_match([*fresh, *optional], {**ours, **saved}, "init_fresh")
    if any(matched >= len(fresh) and name in saved for name, matched in skipped.items()):
        skipped = tree.first_match(fresh, {**ours, **saved}, "init_fresh")
    expected = {name: arrays.abstract(leaf) for name, leaf in ours.items() if name not in skipped}
    other = [n for n in resize or {} if n in expected and n in saved and saved[n].shape != expected[n].shape]
    as_saved = {name: jax.ShapeDtypeStruct(saved[name].shape, expected[name].dtype) for name in other}
    whole = {name: saved.pop(name) for name in pack or {} if name in saved}
    for name, x in whole.items():
        saved |= {f"{name}/{part}": made for part, made in jax.eval_shape(pack[name], x).items()}
    arrays.compare(folder, {n: x for n, x in saved.items() if n not in skipped}, {**expected, **as_saved}, start=True)
    read = {name: x for name, x in {**expected, **as_saved}.items() if name.rpartition("/")[0] not in whole}
    values = {**tree.flatten(state), **layout.read(folder, read)}
    with jax.transfer_guard("allow"):
        for name in other:
            logger.warning("%s: resized from %s to %s.", name, [*saved[name].shape], [*expected[name].shape])
            values[name] = jax.device_put(resize[name](values[name], expected[name].shape), expected[name].sharding)
        for name, x in whole.items():  # one after the other: the file may be larger than the memory
            for part, made in jax.jit(pack[name])(layout.read(folder, {name: x})[name]).items():
                values[f"{name}/{part}"] = jax.device_put(made, expected[f"{name}/{part}"].sharding)
    variables = {key: part for key, part in state.items() if _is_variable(key)}
    return jax.tree.map(values.__getitem__, tree.names(variables))


def _is_variable(name: str) -> bool:
    return re.match(r"(opt|step|params/targets)(/|$)", name) is None  # the heads of training.targets stay behind
