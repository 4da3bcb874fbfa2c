"""Runs of Weights & Biases, which a resumed training goes on with: their id lies in its workdir."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import storage


def start(workdir: pathlib.Path, options: Mapping[str, Any], config: Mapping[str, Any] | None, first_step: int) -> Any:
    """Returns a run of wandb.init with these options; a training that is resumed at `first_step` goes on in its own.

    One that begins anew has another run: wandb would drop each step up to the last one that the earlier has.

    Raises:
      UserError: wandb is not installed, or the options are no section.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"wandb={options!r}: a section of wandb.init's arguments, as dict(project='mine'), or None.")
    try:
        import wandb
    except ImportError:
        raise UserError("Weights & Biases is not installed: pip install wandb, or set wandb=None.") from None
    file = workdir / "wandb_id"
    if not first_step or not file.exists():
        storage.write(file, uuid.uuid4().hex[:8])
    start = {"id": file.read_text(), "resume": "allow", "dir": str(workdir), "config": dict(config or {}), **options}
    return wandb.init(**start)
