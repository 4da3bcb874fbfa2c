"""Where the weights of experts come from: official files, folders that were converted from them, or nowhere."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from prismer_jax import checkpoint, tree
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.errors import UserError
from prismer_jax.experts import EXPERTS
from prismer_jax.experts.expert import Expert
from prismer_jax.files import storage
from prismer_jax.weights import rules, safe

LIKE = 0.5  # a file is an expert's if it has this fraction of its keys, or another expert more


def official(expert: Expert, path: storage.PathLike, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the variables of an official checkpoint, as `Expert.init_from_official`.

    Raises:
      UserError: also where the file is another expert's; the message says whose it seems to be.
    """
    try:
        return expert.init_from_official(path, allow)
    except UserError as error:
        owner = recognise(path)
        if owner in (None, expert.name):
            raise
        raise UserError(
            f"{path}: these seem to be weights of the expert {owner}, not of {expert.name}, whose file is called "
            f"{expert.file}."
        ) from error


def recognise(path: storage.PathLike) -> str | None:
    """Returns the expert whose keys and shapes a file of weights has most of; None if it has half of no expert's."""
    try:
        state = safe.load(path)
    except UserError:
        return None
    likeness = {name: _likeness(expert(), state) for name, expert in EXPERTS.items()}
    best = max(likeness, key=likeness.__getitem__)
    return best if likeness[best] >= LIKE else None


def _likeness(expert: Expert, state: rules.State) -> float:
    """Returns the fraction of an expert's keys that a state dict has, in the expert's shapes."""
    try:
        state = expert.table.spell(expert.unwrap(state))
    except (UserError, KeyError, TypeError):
        return 0.0
    keys = rules.key_shapes(expert.table, expert.shapes)
    return sum(key in state and state[key].shape == shape for key, shape in keys.items()) / len(keys)


def export(folder: storage.PathLike, expert: Expert, variables: Any) -> None:
    """Writes a folder that `load` takes, if it is called as the expert."""
    checkpoint.export(folder, variables, {"expert": expert.name, "file": expert.file})


def find(expert: Expert, checkpoints: storage.PathLike) -> pathlib.Path:
    """Returns what a folder holds of an expert: the folder `<name>` that `export` wrote, or else the official file.

    Of a student, what configs/student.py trained: the folder `student`, or the folder itself.

    Raises:
      UserError: neither is there.
    """
    folder = storage.on_disk(checkpoints)
    for path in expert.places(folder):
        return path
    if not expert.file:
        raise UserError(f"{folder}: holds no {expert.name} of the experts. Train one: configs/student.py.")
    raise UserError(
        f"{folder}: has no weights of {expert.name}: neither {expert.file} nor a folder {expert.name} that python -m "
        f"tools.convert expert wrote. Fetch the file: python -m tools.download experts {expert.name}."
    )


def load(expert: Expert, checkpoints: storage.PathLike) -> dict[str, Any]:
    """Opens an expert, and returns its variables, from what `find` finds.

    Raises:
      UserError: there is nothing, or it cannot be read or is another expert's.
    """
    path = find(expert, checkpoints)
    expert.open(path)
    return load_into(tree.unflatten(expert.shapes), path) if path.is_dir() else official(expert, path)
