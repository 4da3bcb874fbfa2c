"""Builds the data set of scenes, a program of its own: python -m prismer_jax.datasets.scenes.build SETTINGS FOLDER

`scenes.load` starts it, with the settings as JSON. It imports no JAX, so its workers can be forked; one that was killed
goes on where it stopped, and several share the work. What it cannot do is one line on stdout and exit status 2.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import cv2

from prismer_jax import runtime
from prismer_jax.datasets.scenes.generator import VERSION, Settings, example
from prismer_jax.errors import UserError
from prismer_jax.labels import PAPER
from prismer_jax.shards import build, ingest, manifest

SHARDS, FEW = 64, 32  # at most so many shards, for processes to share, and at least so many scenes in each


class Scenes:
    """The scenes as a source: each is rendered when it is asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __len__(self) -> int:
        return self._settings.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ingest.Prepared(example(self._settings, index))


def plan(settings: Settings, folder: str) -> build.Plan:
    """Returns the plan of the data set: record i is scene i."""
    return build.Plan(
        folder=folder,
        name="scenes",
        split=settings.split,
        experts=PAPER,
        count=settings.count,
        shard_size=max(FEW, -(-settings.count // SHARDS)),
        max_side=None,
        made_from={"scenes": settings.name, "version": VERSION},
    )


def make(settings: Settings, folder: str) -> manifest.Manifest:
    """Builds the data set in `folder`, with all processor cores; raises UserError as `build.build` does."""
    cv2.setNumThreads(1)  # a process has one core
    return build.build(plan(settings, folder), Scenes(settings), runtime.cores())


def main(argv: Sequence[str] | None = None) -> None:
    settings, folder = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers put away what is half-written
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings = Settings(**json.loads(settings))
    try:
        make(settings, folder)
    except UserError as error:
        print(error)
        sys.exit(2)
    print(f"Rendered {settings.count} scenes ({settings.split}, {settings.size} px)", file=sys.stderr)


def _end_with_parent() -> None:
    os.read(0, 1)  # the parent writes nothing: this returns when it has died; sys.stdin has a lock, which forks inherit
    os._exit(1)


if __name__ == "__main__":
    main()
