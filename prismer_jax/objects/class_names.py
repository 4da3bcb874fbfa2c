"""What the ids in label maps mean: names of the official classes of segmentation and detection."""

from __future__ import annotations

import functools
import pathlib

FILES = {
    "seg_coco": "coco_classes.txt",
    "seg_ade": "ade_classes.txt",
    "obj_detection": "unidet_classes.txt",
}


@functools.cache
def class_names(expert: str) -> tuple[str, ...]:
    """Names by their ids; none for an expert whose maps hold no classes. Commas separate words for one class."""
    if expert not in FILES:
        return ()
    lines = pathlib.Path(__file__).with_name(FILES[expert]).read_text().splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
