"""The embedded data set: rendered scenes of solids and signs, with exact expert labels, captions and questions.

Scene i of a split is a function of (seed, split, i); its captions and questions do not depend on the picture's size.
`load` builds the data set on first use, with all processor cores, and reads it from then on.

Item of the task 'caption', one a scene: `image`, `labels/*`, `captions` (five).
Item of the task 'question', eight a scene: `image`, `labels/*`, `question`, `answers` (ten), `question_type`, ...
Item of the task 'all', one a scene: `image`, `labels/*`, `captions`, `questions` (a list of eight).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from prismer_jax.datasets.scenes import labels as scenes_labels
from prismer_jax.datasets.scenes import questions as scenes_questions
from prismer_jax.datasets.scenes import render, text, world
from prismer_jax.errors import UserError, choose
from prismer_jax.files.storage import data_folder
from prismer_jax.labels import PAPER
from prismer_jax.shards import records

CLASSES = world.CLASSES  # of seg_coco and of the detected instances
QUESTION_TYPES = scenes_questions.QUESTION_TYPES
QUESTIONS = 8  # a scene
VERSION = "1.2.0"  # of the generator: whatever changes a scene or its texts raises it
SPLITS = ("train", "val")
TASKS = ("caption", "question", "all")


@dataclass(frozen=True)
class Settings:
    """What a data set of scenes is a function of, beside VERSION."""

    split: str
    size: int
    count: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.count}-{self.size}px-seed{self.seed}"


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


def scene(settings: Settings, index: int) -> tuple[world.Scene, scenes_labels.View, np.random.RandomState]:
    """Scene `index`: what it holds, what can be seen of it, and the random stream for its texts."""
    rng = np.random.RandomState([settings.seed, SPLITS.index(settings.split), index])
    solids, signs = world.amounts(rng)
    while True:  # about every tenth draw is taken
        drawn = world.sample(rng, solids, signs)
        if drawn is not None and (view := scenes_labels.view(drawn)).clear(len(drawn.solids)):
            return drawn, view, rng


def example(settings: Settings, index: int) -> dict[str, Any]:
    """Renders and describes scene `index`: the arguments of `records.encode`."""
    drawn, view, rng = scene(settings, index)
    image, hits = render.render(drawn, settings.size)
    labels = scenes_labels.label(drawn, hits, settings.size)
    captions = text.captions(drawn, view, rng)
    questions = scenes_questions.questions(drawn, view, rng, QUESTIONS)
    return {
        "id": f"{settings.split}-{index:06d}",
        "image": _jpeg(image),
        "labels": {name: _png(pixels) for name, pixels in labels.maps.items()},
        "experts": PAPER,
        "classes": labels.classes,
        "word_features": labels.features,
        "words": labels.words,
        "captions": captions,
        "questions": [
            {
                "question": q.text,
                "answers": q.answers,
                "question_type": q.type,
                "question_id": index * QUESTIONS + i,
            }
            for i, q in enumerate(questions)
        ],
    }


def _jpeg(image: np.ndarray) -> bytes:
    # Full colour resolution: a small solid is a few pixels wide.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling])[1].tobytes()


def _png(pixels: np.ndarray) -> bytes:
    # Level 1: the levels above save a tenth of the bytes for twice the time; decoding takes as long.
    return cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
