"""Checkpoints through Orbax: asynchronous, whole or absent, restored bit by bit onto any mesh; and exported models.

A checkpoint is a folder named by its step. Orbax writes it under another name and renames it when everything is there,
so that a process killed half-way leaves nothing that looks like a checkpoint. Trees are stored as nested dicts by the
names of their leaves, which is why any process can read them, whatever classes the optimiser's state is made of. Arrays
are stored as bytes with shape and type, and not where they lay: reading executes nothing, and needs no device.
`steps.py` has the checkpoints of a run, `exports.py` writes exported models, `reading.py` finds and reads both,
`layout.py` says what lies in a folder of either, and `initial.py` begins a run with one. Folders lie on a disk
(`disk.py`) or in a bucket, gs:// (`buckets.py`).
"""

import importlib

from prismer_jax.checkpoint.exports import export
from prismer_jax.checkpoint.layout import DESCRIPTION, WEIGHTS, saved_shapes
from prismer_jax.checkpoint.steps import Checkpointer

__all__ = ["DESCRIPTION", "WEIGHTS", "Checkpointer", "description", "export", "find", "load_export", "saved_shapes"]


def __getattr__(name: str) -> object:  # PEP 562, as in prismer_jax: a training from scratch reads no model
    if name not in ("description", "find", "load_export"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("prismer_jax.checkpoint.reading"), name)
