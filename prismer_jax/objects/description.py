"""A photo's label maps as a few sentences: what is where, how often, what is near, and what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS
from prismer_jax.objects.class_names import class_names

LEAST, REGION = 0.001, 0.01  # shares of a map that a thing and a region have at least
SIDES = ("left", "middle", "right"), ("top", "", "bottom")


def sentences(example: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None = None, most: int = 8) -> list[str]:
    """Returns sentences that are the same for the same labels, those that say most first; [] of a photo without any.

    Args:
      example: with decoded maps of obj_detection, seg_coco, depth, ocr_detection, or some of them, of any sizes.
      names: of an expert's classes where a data set has its own.
      most: kinds of things, and words, that are named.
    """
    names = names or {}
    things = _things(example, names.get("obj_detection", class_names("obj_detection")))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for thing in sorted(things, key=lambda thing: -thing["share"]):
        kinds.setdefault(thing["name"], []).append(thing)
    said = [_counted(name, group) for name, group in list(kinds.items())[:most]]
    out = [f"There {'are' if len(next(iter(kinds.values()))) > 1 else 'is'} {_joined(said)}."] if said else []
    near = sorted((thing for thing in things if thing["nearness"] is not None), key=lambda thing: -thing["nearness"])
    if len(near) > 1:
        first, last = near[0], near[-1]
        out.append(
            f"The {first['name']} at the {first['place']} is nearest, "
            f"the {last['name']} at the {last['place']} farthest."
        )
    if words := [word for word in example.get("words", ()) if word][:most]:  # a student's labels have no texts
        out.append(f"It reads {_joined([f'“{word}”' for word in words])}.")
    if regions := _regions(example, names.get("seg_coco", class_names("seg_coco")), kinds)[:most]:
        out.append(f"{'Also' if out else 'There is'} {_joined(regions)}.")
    return out


def _things(example: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns {name, share, place, nearness} of every instance, by its id."""
    ids, classes = example.get(EXPERTS["obj_detection"].key), example.get(CLASSES_KEY)
    if ids is None or classes is None:
        return []
    ids, depth, objects = ids[..., 0], example.get(EXPERTS["depth"].key), []
    for instance in np.unique(ids[ids != BACKGROUND]).tolist():
        rows, columns = np.nonzero(ids == instance)
        kind, share = int(classes[instance]), len(rows) / ids.size
        if share < LEAST or not 0 <= kind < len(names):
            continue
        y, x = (rows.mean() + 0.5) / ids.shape[0], (columns.mean() + 0.5) / ids.shape[1]
        nearness = None if depth is None else _mean_at(depth[..., 0], rows / ids.shape[0], columns / ids.shape[1])
        objects.append({"name": _first(names[kind]), "share": share, "place": _place(x, y), "nearness": nearness})
    return objects


def _mean_at(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> float:
    """Returns the mean of a map at places in fractions of its sides: maps may have other sizes."""
    return float(values[(y * values.shape[0]).astype(int), (x * values.shape[1]).astype(int)].mean())


def _place(x: float, y: float) -> str:
    return " ".join(filter(None, (SIDES[1][min(2, int(3 * y))], SIDES[0][min(2, int(3 * x))])))


def _regions(example: Mapping[str, Any], names: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Returns the classes of a segmentation that no instance has, largest first."""
    if (ids := example.get(EXPERTS["seg_coco"].key)) is None:
        return []
    kinds, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    large = [int(kinds[i]) for i in order if counts[i] >= REGION * ids.size]
    named = [_first(names[kind]) for kind in large if kind != BACKGROUND and kind < len(names)]
    return [name for name in dict.fromkeys(named) if name not in known]


def _first(name: str) -> str:
    """Returns one word of a class: commas separate several for the same."""
    return name.partition(",")[0].strip()


def _counted(name: str, group: Sequence[Mapping[str, Any]]) -> str:
    where = _joined(list(dict.fromkeys(thing["place"] for thing in group)))
    number = f"{len(group)} x" if len(group) > 1 else "a"
    return f"{number} {name} at the {where}"


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
