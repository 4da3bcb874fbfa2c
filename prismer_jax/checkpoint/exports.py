"""Models in use, written: exported into a folder of their own; reading.py finds and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from prismer_jax import sharding
from prismer_jax.checkpoint import arrays, layout
from prismer_jax.checkpoint.steps import backend
from prismer_jax.errors import UserError
from prismer_jax.files import storage


def export(
    directory: storage.PathLike,
    variables: Any,
    config: Mapping[str, Any],
    files: Mapping[str, storage.PathLike | bytes] | None = None,
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
    if final.exists() and not layout.is_export(final) and not backend(final).is_free(final):
        raise UserError(f"{final} exists and is no exported model; choose another folder or delete it.")
    with arrays.explained(f"Cannot write {final}"), backend(final).replacing(final, main) as new:
        sharding.barrier("export")
        with ocp.Checkpointer(arrays.handler(alone=True)) as writer, jax.transfer_guard("allow"):
            writer.save(new / layout.WEIGHTS, args=ocp.args.PyTreeSave(arrays.nested(variables)))
        if main:
            layout.describe(new, config, files or {})
    sharding.barrier("exported")
