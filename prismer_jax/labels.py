"""The table of label kinds, an expert's each: what a model, and whatever else handles label maps, must know of them.

The files in which the maps lie are the matter of label_files.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prismer_jax.errors import choose

BACKGROUND = 255  # the id of "nothing here" in every map of ids
BACKGROUND_NAME = "<background>"  # for `class_vectors`
FEATURES = 64  # dimension of the vectors that ids are looked up as
MAX_IDS = 256  # rows of the tables that go with instances and words: an id is one byte

CLASSES_KEY = "labels/obj_detection_classes"
WORDS_KEY = "labels/ocr_detection_features"


@dataclass(frozen=True)
class LabelKind:
    """One row of the table.

    Attributes:
      name: also the folder of its label files and its key `labels/<name>` in examples and batches.
      channels: of the stored map: 1 or 3.
      storage: 'grey' and 'rgb' hold intensities, 'ids' class, instance or word ids.
      stem: the model's convolutional stem; experts with the same stem share it.
      embed: how a stored value becomes the stem's input: 'scaled' to [-1, 1]; 'classes' looks an id up in a table of
        class vectors; 'instances' in the example's table of classes first; 'words' in the example's word features.
      fill: value of an empty map, and of pixels that a geometric augmentation moves in from outside.
      num_classes: of the official class table; None where there is none.
    """

    name: str
    channels: int
    storage: Literal["grey", "rgb", "ids"]
    stem: str
    embed: Literal["scaled", "classes", "instances", "words"]
    fill: int
    num_classes: int | None = None

    @property
    def key(self) -> str:
        """The key of the map in an example or a batch."""
        return f"labels/{self.name}"

    @property
    def table(self) -> str | None:
        """The key of the table that goes with a map of instances or words; None of another."""
        return {"instances": CLASSES_KEY, "words": WORDS_KEY}.get(self.embed)


_ROWS = (
    LabelKind("depth", 1, "grey", "depth", "scaled", 0),
    LabelKind("normal", 3, "rgb", "normal", "scaled", 0),
    LabelKind("edge", 1, "grey", "edge", "scaled", 0),
    LabelKind("seg_coco", 1, "ids", "seg", "classes", BACKGROUND, 133),
    LabelKind("seg_ade", 1, "ids", "seg", "classes", BACKGROUND, 150),
    LabelKind("obj_detection", 1, "ids", "obj_detection", "instances", BACKGROUND, 722),
    LabelKind("ocr_detection", 1, "ids", "ocr_detection", "words", BACKGROUND),
)
EXPERTS: dict[str, LabelKind] = {expert.name: expert for expert in _ROWS}
PAPER = ("depth", "normal", "edge", "seg_coco", "obj_detection", "ocr_detection")


def select(spec: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns names of experts, in the table's order, from 'all' (the paper's six), 'none', 'depth+edge' or a sequence.

    In a config's argument, where commas have another meaning, names are joined by '+'; elsewhere ',' does as well.

    Raises:
      UserError: a name is unknown.
    """
    if spec is None or spec == "none":
        return ()
    if spec == "all":
        return PAPER
    names = [name.strip() for name in spec.replace(",", "+").split("+")] if isinstance(spec, str) else spec
    for name in names if isinstance(names, Iterable) else [names]:
        choose("expert", name, EXPERTS)
    return tuple(name for name in EXPERTS if name in names)


def class_vectors(names: Sequence[str]) -> np.ndarray:
    """Returns fixed random vectors float32 [len(names), 64] of unit variance; each is a function of its name alone.

    They stand in for the official tables of CLIP features where a data set has its own classes: a name has the same
    vector whatever its id, so models trained on different class lists agree.
    """
    # RandomState: its stream is frozen for all versions of NumPy, Generator's is not.
    rows = [np.random.RandomState(zlib.crc32(name.encode())).standard_normal(FEATURES) for name in names]
    return np.asarray(rows, np.float32).reshape(len(names), FEATURES)


def blank(expert: str, height: int, width: int) -> np.ndarray:
    """Returns the empty label map uint8 [height, width, channels], which stands in for a missing label."""
    row = choose("expert", expert, EXPERTS)
    return np.full((height, width, row.channels), row.fill, np.uint8)


def no_classes() -> np.ndarray:
    """Returns the empty table int32 [256] of `labels/obj_detection_classes`: no instance has a class."""
    return np.full(MAX_IDS, -1, np.int32)


def no_words() -> np.ndarray:
    """Returns the empty table float16 [256, 64] of `labels/ocr_detection_features`."""
    return np.zeros((MAX_IDS, FEATURES), np.float16)


EMPTY_TABLES = {CLASSES_KEY: no_classes(), WORDS_KEY: no_words()}
