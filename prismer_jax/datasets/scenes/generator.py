"""Scene `index` of a split: what it holds, and its picture, labels, captions and questions as an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from prismer_jax.datasets.scenes import labels as scenes_labels
from prismer_jax.datasets.scenes import questions as scenes_questions
from prismer_jax.datasets.scenes import render, text, world
from prismer_jax.labels import PAPER

QUESTIONS = 8  # a scene
VERSION = "1.2.0"  # of the generator: whatever changes a scene or its texts raises it
SPLITS = ("train", "val")


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


def scene(settings: Settings, index: int) -> tuple[world.Scene, scenes_labels.View, np.random.RandomState]:
    """Returns scene `index`: what it holds, what can be seen of it, and the random stream for its texts."""
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
            {"question": q.text, "answers": q.answers, "question_type": q.type, "question_id": index * QUESTIONS + i}
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
