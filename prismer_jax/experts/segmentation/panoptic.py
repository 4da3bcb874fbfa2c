"""Panoptic segmentation from Mask2Former's masks: every pixel belongs to at most one segment, things are counted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from prismer_jax.typing import Float, Int, typed


@dataclass(frozen=True)
class Segment:
    """One object (a thing), or all of one kind of stuff.

    Attributes:
      id: its value in the map, from 1 on.
      category: class id.
      thing: whether it is a thing.
    """

    id: int
    category: int
    thing: bool


@dataclass(frozen=True)
class Panoptic:
    """The segments of a photo, and the map int32 [h, w] of their ids; 0 is none."""

    map: np.ndarray
    segments: tuple[Segment, ...]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@typed
def confident(logits: Float[np.ndarray, "q c"], min_score: float = 0.8) -> Int[np.ndarray, " n"]:
    """Returns the queries that are an object of some class with more than `min_score` probability."""
    probabilities = softmax(logits)
    best = probabilities.argmax(-1)
    return np.flatnonzero((best != logits.shape[1] - 1) & (probabilities.max(-1) > min_score))


@typed
def panoptic(
    logits: Float[np.ndarray, "q c"],
    masks: Float[np.ndarray, "h w q"],
    things: Collection[int],
    min_overlap: float = 0.8,
) -> Panoptic:
    """Makes segments of the queries that `confident` has chosen.

    A pixel goes to the query whose mask and class together are the most probable there, if its mask is at least one
    half. A query that keeps less than `min_overlap` of its mask is dropped; queries of the same stuff become one
    segment. Source: NVlabs/prismer, experts/segmentation/mask2former/maskformer_model.py (panoptic_inference), and its
    configurations for the thresholds.

    Args:
      logits: of the classes, "no object" last.
      masks: their logits.
      things: ids of the classes that are counted.
    """
    segment_map, segments = np.zeros(masks.shape[:2], np.int32), []
    if not len(logits):
        return Panoptic(segment_map, ())
    probabilities = softmax(logits)
    scores, categories = probabilities.max(-1), probabilities.argmax(-1)
    inside = masks >= 0
    winner = (scores / (1 + np.exp(-masks))).argmax(-1)
    stuff: dict[int, int] = {}
    for query, category in enumerate(categories.tolist()):
        won = winner == query
        pixels = won & inside[..., query]
        if not pixels.any() or won.sum() < min_overlap * inside[..., query].sum():
            continue
        number = len(segments) + 1
        if category not in things:
            number = stuff.setdefault(category, number)
        segment_map[pixels] = number
        if number > len(segments):
            segments.append(Segment(number, category, category in things))
    return Panoptic(segment_map, tuple(segments))
