"""How well boxes and masks fit: RefCOCO's mean overlap as big_vision counts it, and COCO's average precision.

Sources: google-research/big_vision, evaluators/proj/paligemma/transfers/segmentation.py; cocodataset/cocoapi,
PythonAPI/pycocotools/cocoeval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax.objects import shapes, spelling
from prismer_jax.objects.codec import MaskCodec

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # boxes of a photo that count
BOX_THRESHOLDS = (0.5, 0.75)


def overlaps(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Returns the intersection over the union [n, m] of boxes y1, x1, y2, x2 [n, 4] and [m, 4].

    Where the other is a crowd [m], the union is the box alone, as in COCO.
    """
    boxes, others = np.asarray(boxes, np.float64).reshape(-1, 1, 4), np.asarray(others, np.float64).reshape(1, -1, 4)
    inside = _area(np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:]))
    own, theirs = (_area(x[..., :2], x[..., 2:]) for x in (boxes, others))
    union = own + theirs - inside
    if crowd is not None:
        union = np.where(crowd[None], own, union)
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.maximum(high - low, 0).prod(-1)


def segmented(said: Sequence[str], boxes: np.ndarray, masks: Sequence[np.ndarray], codec: MaskCodec) -> np.ndarray:
    """Returns float64 [n, 4]: overlap of the masks, whether that of the boxes is at least 0.5 and 0.75, invalid.

    A text is valid if it begins with four places and sixteen codes, its box has a height and a width, and pixels in the
    photo; what follows is not looked at. The mask of an invalid one overlaps with nothing.

    Args:
      said: what a model said.
      boxes: that it should have said [n, 4], y1, x1, y2, x2 as fractions.
      masks: bool [height, width] of the photo.
      codec: decodes the masks.
    """
    masks_said = [spelling.parse_mask(text) for text in said]
    decoded = codec.decode(np.array([one.codes if one else (0,) * spelling.TOKENS for one in masks_said]))
    rows = []
    for one, box, mask, inside in zip(masks_said, np.asarray(boxes, np.float64), masks, decoded, strict=True):
        overlap, drawn = 0.0, None if one is None else shapes.pasted(inside, one.box, mask.shape)
        if drawn is not None:
            both = np.count_nonzero(drawn & mask)
            union = np.count_nonzero(drawn) + np.count_nonzero(mask) - both
            overlap = both / union if union else 0.0
        fit = overlaps([(0.0,) * 4 if one is None else one.box], [box])[0, 0]
        rows.append([overlap, *(fit >= threshold for threshold in BOX_THRESHOLDS), drawn is None])
    return np.array(rows, np.float64)


def average_precision(photos: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yields `AP`, `AP50`, `AP75` as pycocotools has them for boxes of all sizes, the mean of all names that occur.

    A model that writes boxes gives no confidences; where `scores` are missing all boxes have the same, and equal ones
    count in the order of the photos.

    Args:
      photos: for each, `objects`, a list of {"name", "box", "crowd"} that are there, and `found`, a list of {"name",
        "box", "score"}; boxes y1, x1, y2, x2 in pixels or anything of the same proportions; `crowd` and `score` may be
        missing.
    """
    names = sorted({one["name"] for photo in photos for one in photo["objects"] if not one.get("crowd")})
    table = np.array([_precisions(photos, name) for name in names]).reshape(len(names), len(THRESHOLDS))
    yield "AP", float(table.mean()) if names else 0.0
    for column, threshold in ((0, "50"), (5, "75")):
        yield f"AP{threshold}", float(table[:, column].mean()) if names else 0.0


def harmonic(photo: Mapping[str, Any], threshold: float = 0.5) -> float:
    """Returns F1, the harmonic mean of a photo's precision and recall, at an overlap; 1 where nothing is there or said.

    `photo` is one of `average_precision`; boxes that fit a crowd count neither way.
    """
    right = count = 0
    for name in {one["name"] for one in (*photo["objects"], *photo["found"])}:
        fits, crowd, predicted = _fits(photo, name)
        matches = _matched(fits, crowd, threshold)
        hit = matches >= 0
        ignored = np.count_nonzero(crowd[matches[hit]])
        right += np.count_nonzero(hit) - ignored
        count += len(predicted) - ignored + np.count_nonzero(~crowd)
    return 2 * right / count if count else 1.0


def _fits(photo: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray, list[Mapping[str, Any]]]:
    """Returns the overlaps [n, m] of found boxes of a name, the surest first, with objects, crowds last; which objects
    are crowds [m]; the found."""
    objects = sorted((one for one in photo["objects"] if one["name"] == name), key=lambda one: bool(one.get("crowd")))
    predicted = [one for one in photo["found"] if one["name"] == name]
    predicted = sorted(predicted, key=lambda one: -one.get("score", 1.0))[:MOST]
    crowd = np.array([bool(one.get("crowd")) for one in objects], bool)
    return overlaps([one["box"] for one in predicted], [one["box"] for one in objects], crowd), crowd, predicted


def _precisions(photos: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Returns the average precision of a name at each of THRESHOLDS."""
    scores, hits, ignored, there = [], [], [], 0
    for photo in photos:
        fits, crowd, predicted = _fits(photo, name)
        there += np.count_nonzero(~crowd)
        matches = np.stack([_matched(fits, crowd, threshold) for threshold in THRESHOLDS])
        scores += [one.get("score", 1.0) for one in predicted]
        hits.append(matches >= 0)
        ignored.append((matches >= 0) & (crowd[matches] if len(crowd) else False))
    order = np.argsort(-np.array(scores), kind="stable")
    hit, ignore = (np.concatenate(parts, axis=1)[:, order] for parts in (hits, ignored))
    return np.array([_area_under(row[~skip], there) for row, skip in zip(hit, ignore, strict=True)])


def _matched(fits: np.ndarray, crowd: np.ndarray, threshold: float) -> np.ndarray:
    """Returns for each found box the object that it is counted for, -1 for none; a crowd takes any number."""
    taken, matches = np.zeros(fits.shape[1], bool), np.full(len(fits), -1)
    for row, fit in enumerate(fits):
        best = min(threshold, 1 - 1e-10)
        for column in range(len(taken)):
            if taken[column] and not crowd[column]:
                continue
            if matches[row] >= 0 and not crowd[matches[row]] and crowd[column]:
                break  # crowds come last, and are for what fits nothing else
            if fit[column] >= best:
                best, matches[row] = fit[column], column
        if matches[row] >= 0:
            taken[matches[row]] = True
    return matches


def _area_under(hits: np.ndarray, there: int) -> float:
    """Returns the mean precision at RECALLS of boxes, the most confident first, of which some hit."""
    right = np.cumsum(hits)
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(right / there, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(places, len(hits))].mean())
