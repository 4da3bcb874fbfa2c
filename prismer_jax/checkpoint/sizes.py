"""Sizes of the files of finished checkpoints, by which one that a power cut tore later is told from a whole one.

A kill of the process leaves no half of a checkpoint (see Checkpointer), but a file system that loses its power may hold
a folder with its final name and files without their content.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import storage

FILE = "sizes.json"  # beside the steps: {step: {file: bytes}}


def note(directory: pathlib.Path, steps: Iterable[int]) -> None:
    """Writes the sizes of the files of these steps, keeping those that are there; steps left out are forgotten."""
    known, sizes = read_json(directory / FILE), {}
    for name in map(str, steps):
        files = (path for path in (directory / name).rglob("*") if path.is_file())
        sizes[name] = known.get(name) or {str(p.relative_to(directory / name)): p.stat().st_size for p in files}
    storage.write_json(directory / FILE, sizes, indent=None)


def what_is_torn(directory: pathlib.Path, step: int) -> str:
    """Returns which file of a step is missing or has another size than noted; '' where all are as they were."""
    for name, size in read_json(directory / FILE).get(str(step), {}).items():
        path = directory / str(step) / name
        now = path.stat().st_size if path.exists() else None
        if now != size:
            return f"{name} is missing" if now is None else f"{name} has {now} bytes instead of {size}"
    return ""


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns what a JSON file holds, {} if there is none.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{file} is damaged: it is not JSON. Delete it, and keep the checkpoints beside it.") from None
