"""The embedded data set: rendered scenes of solids and signs, with exact expert labels, captions and questions.

Scene i of a split is a function of (seed, split, i); its captions and questions do not depend on the picture's size.
`load` builds the data set on first use, with all processor cores, and reads it from then on.

Item of the task 'caption', one a scene: `image`, `labels/*`, `captions` (five).
Item of the task 'question', eight a scene: `image`, `labels/*`, `question`, `answers` (ten), `question_type`, ...
Item of the task 'all', one a scene: `image`, `labels/*`, `captions`, `questions` (a list of eight).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

from prismer_jax.datasets.scenes.generator import QUESTIONS, SPLITS, VERSION, Settings, example, scene
from prismer_jax.datasets.scenes.questions import QUESTION_TYPES
from prismer_jax.datasets.scenes.world import CLASSES
from prismer_jax.errors import UserError, choose
from prismer_jax.files.storage import PathLike, data_folder
from prismer_jax.shards import manifest, records

__all__ = ["CLASSES", "QUESTIONS", "QUESTION_TYPES", "SPLITS", "VERSION", "Settings", "example", "load", "scene"]


def load(
    split: str = "train",
    task: str = "caption",
    *,
    size: int = 96,
    count: int = 4000,
    seed: int = 0,
    data_dir: PathLike | None = None,
) -> records.Source:
    """Returns the scenes of a split as a source of examples; they are built first if they are not there.

    Args:
      split: 'train' or 'val', which share no scene.
      task: 'caption', 'question' or 'all'.
      size: pictures and label maps are size x size pixels.
      count: of training scenes; 'val' has a tenth as many.
      seed: of the generator.
      data_dir: where data sets lie: $PRISMER_DATA_DIR or ~/.cache/prismer_jax/data by default.

    Raises:
      UserError: an argument is not as above, or there is no space for the data.
    """
    choose("task of the scenes", task, records.TASKS)
    choose("split of the scenes", split, SPLITS)
    if not (32 <= size <= 2048 and 1 <= count <= 10_000_000 and 0 <= seed < 2**31):
        raise UserError(f"scenes: {size=} must be in 32..2048, {count=} in 1..10000000, {seed=} in 0..2147483647.")
    settings = Settings(split, size, count if split == "train" else max(1, count // 10), seed)
    folder = data_folder(data_dir) / "scenes" / settings.name / VERSION
    if not _is_finished(folder):
        _build(settings, folder)
    return records.Source(folder, task, QUESTIONS)


def _is_finished(folder: pathlib.Path) -> bool:
    """Whether a data set is whole; those of earlier versions appeared as a whole, without plan or manifest."""
    older = (folder / "features.json").exists() and not (folder / manifest.PLAN).exists()
    return older or (folder / manifest.FILE).exists()


def _build(settings: Settings, folder: pathlib.Path) -> None:
    """Builds the data set in a program of its own: processes that run JAX cannot be forked."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = settings.count * (12_000 + settings.size**2)  # measured: 12 kB at 96 pixels, 35 kB at 224
    if (free := shutil.disk_usage(folder.parent).free) < 2 * needed:
        raise UserError(f"{folder}: {2 * needed >> 20} MiB are needed and {free >> 20} free. Set PRISMER_DATA_DIR.")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one thread a process, not one a core
    program = subprocess.Popen(
        [sys.executable, "-m", "prismer_jax.datasets.scenes.build", json.dumps(dataclasses.asdict(settings)), folder],
        stdin=subprocess.PIPE,  # closed by the death of this process, which the program notices
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        process_group=0,  # Ctrl-C reaches this process alone, which ends the program
    )
    try:
        problem = program.stdout.read().strip()
    except KeyboardInterrupt:
        program.terminate()
        raise
    finally:
        program.wait()
        program.stdin.close()
        program.stdout.close()
    if program.returncode:
        raise UserError(problem or f"{folder}: the program that builds it died with status {program.returncode}.")
