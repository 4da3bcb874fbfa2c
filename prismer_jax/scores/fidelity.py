"""How faithful label maps are to others: counts of a photo that can be added up, and the measures of their sums.

    counts = compare("seg_coco", predicted, exact)        # of each photo, what JSON can write
    dict(measures("seg_coco", [counts, ...]))              # {"miou": ...}

depth    abs_rel: the mean of |predicted - exact| / exact, where exact is at least a tenth of the range: labels are
         inverse depths, whose far end is 0
normal   angle: the mean angle in degrees, where both have a direction; a missing or an invented one counts as 90
edge     f: of edge pixels, those at least half as dark as black; one is right if the other map has one within 0.0075 of
         the photo's diagonal, a pixel at least, as in BSDS (Martin et al. 2004, arXiv 1504.06375 section 3)
classes  miou: the mean over classes that occur of intersection over union, over all photos
objects  pq: panoptic quality (Kirillov et al., arXiv 1801.00868) and its parts rq and sq: each the mean over classes
         that occur in either map, as in cocodataset/panopticapi (evaluation.py)
words    pq, all words being of one class; cosine: the mean with the vector of the word that was found
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from prismer_jax.labels import BACKGROUND, EXPERTS

Counts = dict[str, Any]
FAR = 26  # below it, of 255, a depth counts nowhere
DIRECTION = 0.5  # a shorter normal is none
EDGE = 128  # a pixel below it is of an edge
TOLERANCE = 0.0075  # of the diagonal
WORD = 0  # the class of all words
# The names that `measures` yields of each kind.
MEASURES = {"depth": ("abs_rel",), "normal": ("angle",), "edge": ("f", "precision", "recall")}
MEASURES |= {"seg_coco": ("miou",), "seg_ade": ("miou",)}
MEASURES |= {"obj_detection": ("pq", "rq", "sq"), "ocr_detection": ("pq", "rq", "sq", "cosine")}
MAIN = {kind: names[0] for kind, names in MEASURES.items()}


def compare(
    kind: str,
    predicted: np.ndarray,
    exact: np.ndarray,
    predicted_table: np.ndarray | None = None,
    exact_table: np.ndarray | None = None,
) -> Counts:
    """Returns the counts of a photo's map beside the exact one, both uint8 [h, w, c].

    Args:
      kind: of label, a name of `labels.EXPERTS`.
      predicted_table, exact_table: the class of each instance [n], or the vector of each word [n, 64].

    Raises:
      ValueError: the maps differ in size.
    """
    if predicted.shape != exact.shape:
        raise ValueError(f"{kind}: maps of {predicted.shape} and {exact.shape} cannot be compared; resize one.")
    row = EXPERTS[kind]
    if row.embed == "classes":
        return _classes(predicted[..., 0], exact[..., 0])
    if row.embed == "instances":
        return _matched(predicted[..., 0], exact[..., 0], predicted_table, exact_table)
    if row.embed == "words":
        return _words(predicted[..., 0], exact[..., 0], predicted_table, exact_table)
    return {"depth": _depth, "normal": _normal, "edge": _edge}[kind](predicted, exact)


def measures(kind: str, counts: Sequence[Counts]) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of all photos together; nothing where there was nothing to be right about."""
    total = _added(counts)
    if not total:
        return
    if kind == "depth" and total["pixels"]:
        yield "abs_rel", total["sum"] / total["pixels"]
    elif kind == "normal" and total["pixels"]:
        yield "angle", total["sum"] / total["pixels"]
    elif kind == "edge" and total["exact"]:
        precision, recall = total["right"] / max(total["predicted"], 1), total["found"] / total["exact"]
        yield from (("f", 2 * precision * recall / max(precision + recall, 1e-9)),)
        yield from (("precision", precision), ("recall", recall))
    elif EXPERTS[kind].embed == "classes":
        there = [one for one in total.values() if one["exact"]]
        if there:
            yield (
                "miou",
                float(np.mean([one["both"] / (one["predicted"] + one["exact"] - one["both"]) for one in there])),
            )
    elif EXPERTS[kind].storage == "ids":
        cosines = total.pop("cosine", 0.0)
        if total:
            names = ("overlap", "matched", "missed", "invented")
            overlap, matched, missed, invented = np.array([[one[n] for n in names] for one in total.values()]).T
            wrong = (missed + invented) / 2
            yield "pq", float((overlap / (matched + wrong)).mean())
            yield "rq", float((matched / (matched + wrong)).mean())
            yield "sq", float((overlap / np.maximum(matched, 1)).mean())
            if EXPERTS[kind].embed == "words":
                yield "cosine", cosines / max(float(matched.sum()), 1)


def _depth(predicted: np.ndarray, exact: np.ndarray) -> Counts:
    near = exact >= FAR
    relative = np.abs(predicted.astype(np.float64) - exact)[near] / exact[near]
    return {"sum": float(relative.sum()), "pixels": int(near.sum())}


def _normal(predicted: np.ndarray, exact: np.ndarray) -> Counts:
    has_direction = (exact != 0).any(-1)  # a black pixel says nothing
    (ours, has), (theirs, should) = (_directions(x) for x in (predicted, exact))
    angles = np.degrees(np.arccos(np.clip((ours * theirs).sum(-1), -1, 1)))
    angles = np.where(has & should, angles, 90.0)[has_direction & (has | should)]
    return {"sum": float(angles.sum()), "pixels": len(angles)}


def _directions(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit normals, and where there is one."""
    normal = label.astype(np.float64) / 127.5 - 1
    length = np.linalg.norm(normal, axis=-1)
    return normal / np.maximum(length, DIRECTION)[..., None], (length > DIRECTION) & (label != 0).any(-1)


def _edge(predicted: np.ndarray, exact: np.ndarray) -> Counts:
    ours, theirs = predicted[..., 0] < EDGE, exact[..., 0] < EDGE
    radius = max(1, round(TOLERANCE * math.hypot(*ours.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    near_ours, near_theirs = (cv2.dilate(x.astype(np.uint8), disc) > 0 for x in (ours, theirs))
    right, recalled = ours & near_theirs, theirs & near_ours
    return {
        "predicted": int(ours.sum()),
        "right": int(right.sum()),
        "exact": int(theirs.sum()),
        "found": int(recalled.sum()),
    }


def _classes(predicted: np.ndarray, exact: np.ndarray) -> Counts:
    counts = {}
    for value in np.union1d(predicted, exact).tolist():
        if value != BACKGROUND:
            ours, theirs = predicted == value, exact == value
            both = int((ours & theirs).sum())
            counts[str(value)] = {"both": both, "predicted": int(ours.sum()), "exact": int(theirs.sum())}
    return counts


def _ids(label: np.ndarray) -> list[int]:
    return [int(i) for i in np.unique(label) if i != BACKGROUND]


def _pairs(
    predicted: np.ndarray, exact: np.ndarray, kinds: Mapping[str, Mapping[int, int]]
) -> list[tuple[int, int, float]]:
    """Returns (predicted id, exact id, overlap) of those of one class that overlap by more than half: one to one."""
    pairs = []
    for one in kinds["predicted"]:
        ours = predicted == one
        for other in _ids(exact[ours]):
            theirs = exact == other
            overlap = float((ours & theirs).sum() / (ours | theirs).sum())
            if overlap > 0.5 and kinds["predicted"][one] == kinds["exact"].get(other):
                pairs.append((one, other, overlap))
    return pairs


def _quality(predicted: np.ndarray, exact: np.ndarray, kinds: Mapping[str, Mapping[int, int]]) -> tuple[Counts, list]:
    pairs, counts = _pairs(predicted, exact, kinds), {}
    for kind in sorted({*kinds["predicted"].values(), *kinds["exact"].values()}):
        own = [overlap for one, _, overlap in pairs if kinds["predicted"][one] == kind]
        missed = sum(value == kind for value in kinds["exact"].values()) - len(own)
        invented = sum(value == kind for value in kinds["predicted"].values()) - len(own)
        counts[str(kind)] = {"overlap": sum(own), "matched": len(own), "missed": missed, "invented": invented}
    return counts, pairs


def _matched(predicted: np.ndarray, exact: np.ndarray, predicted_table: Any, exact_table: Any) -> Counts:
    kinds = {
        "predicted": {i: int(predicted_table[i]) for i in _ids(predicted)},
        "exact": {i: int(exact_table[i]) for i in _ids(exact)},
    }
    return _quality(predicted, exact, kinds)[0]


def _words(predicted: np.ndarray, exact: np.ndarray, predicted_table: Any, exact_table: Any) -> Counts:
    kinds = {"predicted": dict.fromkeys(_ids(predicted), WORD), "exact": dict.fromkeys(_ids(exact), WORD)}
    counts, pairs = _quality(predicted, exact, kinds)
    vectors = [
        (np.asarray(predicted_table[i], np.float64), np.asarray(exact_table[j], np.float64)) for i, j, _ in pairs
    ]
    lengths = [max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9) for a, b in vectors]
    return counts | {"cosine": sum(float(a @ b) / n for (a, b), n in zip(vectors, lengths, strict=True))}


def _added(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the sums of what stands under one name, at any depth."""
    total: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            if isinstance(value, Mapping):
                total[name] = _added([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total
