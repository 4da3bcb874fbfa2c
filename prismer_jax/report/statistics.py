"""What an expert's label maps hold over a data set, and what looks as if the expert had not worked.

`Statistics` of single photos add up: worker processes count parts of a data set, and the sum is that of the whole.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS

# Thresholds of warnings, as fractions of the photos that are looked at. They are to catch a run that went wrong, not to
# judge an expert: what real photos give lies far from them.
FEW = 5  # photos below which nothing is said about a whole run
MISSING, CONSTANT, SAME = 0.01, 0.2, 0.05
BACKGROUND_SHARE = {"seg_coco": 0.9, "seg_ade": 0.9}  # Mask2Former leaves no pixel without a class
EMPTY = {"seg_coco": 0.2, "seg_ade": 0.2, "obj_detection": 0.8}  # many photos have no words
ONE_CLASS = 0.95
NARROW = 24  # levels between the 1st and the 99th percentile: depth is stretched to 255 in every photo
UNIT = 0.15  # how far from 1 the length of a normal may be: rounding to 8 bits moves it by 0.01


@dataclasses.dataclass
class Statistics:
    """Statistics of one expert's maps.

    Attributes:
      expert: its name.
      photos: looked at.
      missing: photos without a map of it.
      empty: maps without content: all background (ids), or all of the fill value.
      constant: maps of one value that are not empty.
      pixels: of all maps; `background` of them are (ids only).
      values: how often each value occurs [channels, 256].
      classes: class id -> pixels (segmentation) or instances (detection).
      counts: instances or words per photo -> photos, empty maps included.
      unclassed: instances without a class.
      off_unit: of the normals' pixels that are a direction, those whose length is not 1.
      maps: checksum of a map that is neither empty nor constant -> how many photos have it.
    """

    expert: str
    photos: int = 0
    missing: int = 0
    empty: int = 0
    constant: int = 0
    pixels: int = 0
    background: int = 0
    unclassed: int = 0
    off_unit: int = 0
    values: np.ndarray | None = None
    classes: Counter[int] = dataclasses.field(default_factory=Counter)
    counts: Counter[int] = dataclasses.field(default_factory=Counter)
    maps: Counter[int] = dataclasses.field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.values is None:
            self.values = np.zeros((EXPERTS[self.expert].channels, 256), np.int64)

    @property
    def present(self) -> int:
        return self.photos - self.missing

    def add(self, label: np.ndarray | None, example: Mapping[str, Any]) -> None:
        """Counts the map uint8 [h, w, c] of one photo, None if it has none; `example` holds the tables beside it."""
        row = EXPERTS[self.expert]
        self.photos += 1
        if label is None:
            self.missing += 1
            return
        values = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in np.moveaxis(label, -1, 0)])
        self.values += values
        self.pixels += label.shape[0] * label.shape[1]
        if (values > 0).sum() == row.channels:
            if (label[0, 0] == row.fill).all():
                self.empty += 1
            else:
                self.constant += 1
        else:
            self.maps[zlib.crc32(np.ascontiguousarray(label))] += 1
        if row.storage == "ids":
            self.background += int(values[0, BACKGROUND])
            self._count_ids(values[0, :BACKGROUND], example)
        elif row.storage == "rgb":
            small = label[::4, ::4].astype(np.float32) / 127.5 - 1
            length = np.sqrt(np.square(small).sum(-1))[small.max(-1) > -1]
            self.off_unit += int((np.abs(length - 1) > UNIT).sum()) * label.size // small.size

    def _count_ids(self, pixels: np.ndarray, example: Mapping[str, Any]) -> None:
        ids = np.flatnonzero(pixels)
        match EXPERTS[self.expert].embed:
            case "classes":
                self.classes.update({int(i): int(pixels[i]) for i in ids})
            case "instances":
                self.counts[len(ids)] += 1
                table = example.get(CLASSES_KEY)
                kinds = [-1 if table is None else int(table[i]) for i in ids]
                self.unclassed += kinds.count(-1)
                self.classes.update(kind for kind in kinds if kind >= 0)
            case "words":
                self.counts[len(ids)] += 1

    def update(self, other: Statistics) -> None:
        """Adds the counts of another."""
        for field in dataclasses.fields(self):
            if field.name == "expert":
                continue
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, field.name, mine + theirs)

    def share(self, name: str) -> float:
        """Returns the share of `missing` photos, of `empty` or `constant` maps, or of `background` pixels."""
        whole = {"missing": self.photos, "background": self.pixels}.get(name, self.present)
        return getattr(self, name) / max(whole, 1)

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean and the standard deviation [channels] of the values."""
        total = np.maximum(self.values.sum(1), 1)
        levels = np.arange(256)
        mean = self.values @ levels / total
        return mean, np.sqrt(np.maximum(self.values @ levels**2 / total - mean**2, 0))

    def percentile(self, fraction: float) -> int:
        """Returns the value, of all channels together, that this fraction of the pixels does not exceed."""
        sums = np.cumsum(self.values.sum(0))
        return int(np.searchsorted(sums, fraction * sums[-1]))

    def per_photo(self) -> float:
        """Returns the mean number of instances or words in a photo."""
        return sum(n * photos for n, photos in self.counts.items()) / max(self.counts.total(), 1)


def warnings(stats: Statistics, names: Sequence[str] = ()) -> list[str]:
    """Returns a line for each sign that the expert has not worked, which says what to do; none if all is well."""
    row, say, many = EXPERTS[stats.expert], [], stats.present >= FEW
    if stats.missing == stats.photos:
        return [f"{row.name}: no photo has a label. Run make_labels, or check the folder."] if stats.photos else []
    if stats.share("missing") > MISSING:
        rest = " (the official code writes none where it finds no word)" if row.embed == "words" else ""
        remedy = "Run make_labels again: it makes what is missing, and names the photos that it cannot read."
        say.append(f"{stats.missing} of {stats.photos} photos have no label{rest}. {remedy}")
    if many and stats.empty == stats.present and row.name != "ocr_detection":
        say.append("every map is empty. Check the checkpoint that the expert was given.")
    elif many and stats.empty == stats.present and stats.present >= 4 * FEW:
        say.append("not one photo has a word. Right for photos without text only.")
    elif many and stats.share("empty") > EMPTY.get(row.name, 1.0 if row.storage == "ids" else CONSTANT):
        say.append(f"{_percent(stats.share('empty'))} of the maps are empty. Look at some of their photos.")
    if many and stats.share("constant") > CONSTANT:
        say.append(f"{_percent(stats.share('constant'))} of the maps are of one value. The expert saw nothing in them.")
    if many and stats.empty < stats.present and stats.share("background") > BACKGROUND_SHARE.get(row.name, 1.0):
        say.append(f"{_percent(stats.share('background'))} of the pixels are background.")
    if stats.maps and (most := stats.maps.most_common(1)[0][1]) > max(2, SAME * stats.present):
        say.append(f"{most} photos have the same map. Was one photo's label written for all?")
    if row.embed == "classes" and many and stats.classes:
        kind, pixels = stats.classes.most_common(1)[0]
        if pixels > ONE_CLASS * stats.classes.total():
            say.append(f"{_percent(pixels / stats.classes.total())} of what is labelled is {name_of(kind, names)!r}.")
    if stats.unclassed:
        say.append(f"{stats.unclassed} instances have no class: the .json beside their map lacks them.")
    return [f"{row.name}: {text}" for text in say + (_odd_values(stats) if many else [])]


def _odd_values(stats: Statistics) -> list[str]:
    varied = stats.present - stats.empty - stats.constant
    match stats.expert:
        case "depth" if varied and stats.percentile(0.99) - stats.percentile(0.01) < NARROW:
            return ["values use a few grey levels only. Was the map scaled to 0..255?"]
        case "normal" if stats.off_unit > 0.5 * stats.pixels:
            return [
                f"{_percent(stats.off_unit / stats.pixels)} of the normals do not have length 1. Is it another map?"
            ]
        case "edge" if varied and stats.distribution()[0][0] < 128:
            return ["most pixels are dark, and edges are dark on white here. Was the map inverted?"]
    return []


def name_of(kind: int, names: Sequence[str]) -> str:
    """Returns a class's name, or its number where it has none."""
    return str(names[kind]) if kind < len(names) else f"class {kind}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share < 0.995 or share == 1 else f"{100 * share:.1f}%"
