"""The embedded data set: rendered scenes of solids and signs, with exact expert labels, captions and questions.

Scene i of a split is a function of (seed, split, i); its captions and questions do not depend on the picture's size.
`load` builds the data set on first use, with all processor cores, and reads it from then on.

Item of the task 'caption', one a scene: `image`, `labels/*`, `captions` (five).
Item of the task 'question', eight a scene: `image`, `labels/*`, `question`, `answers` (ten), `question_type`, ...
Item of the task 'all', one a scene: `image`, `labels/*`, `captions`, `questions` (a list of eight).
"""

from __future__ import annotations

import os

from prismer_jax.datasets.scenes.generator import QUESTIONS, SPLITS, VERSION, Settings, example, scene
from prismer_jax.datasets.scenes.questions import QUESTION_TYPES
from prismer_jax.datasets.scenes.world import CLASSES
from prismer_jax.errors import UserError, choose
from prismer_jax.files.storage import data_folder
from prismer_jax.shards import records

__all__ = ["CLASSES", "QUESTIONS", "QUESTION_TYPES", "SPLITS", "VERSION", "Settings", "example", "load", "scene"]

TASKS = ("caption", "question", "all")


def load(
    split: str = "train",
    task: str = "caption",
    *,
    size: int = 96,
    count: int = 4000,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> records.Source:
    """The scenes of a split as a source of examples; they are built first if they are not there.

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
    choose("task of the scenes", task, dict.fromkeys(TASKS))
    choose("split of the scenes", split, dict.fromkeys(SPLITS))
    if not (32 <= size <= 2048 and 1 <= count <= 10_000_000 and 0 <= seed < 2**31):
        raise UserError(f"scenes: {size=} must be in 32..2048, {count=} in 1..10000000, {seed=} in 0..2147483647.")
    settings = Settings(split, size, count if split == "train" else max(1, count // 10), seed)
    folder = data_folder(data_dir) / "scenes" / settings.name / VERSION
    if not folder.exists():
        from prismer_jax.datasets.scenes import build  # imports TFDS, which reading does not need

        build.build(settings, folder)
    return records.Source(folder, task, QUESTIONS)
