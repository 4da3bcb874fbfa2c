"""Photos with boxes and masks of what is in them: COCO's instances, and lists of one's own.

- COCO's: {"images": [{"id", "file_name", "height", "width"}], "annotations": [{"image_id", "category_id", "bbox",
  "segmentation", "iscrowd"}], "categories": [{"id", "name"}]}; boxes are x, y, width, height in pixels. An image may
  have a `caption` that names its object, as RefCOCO's lists in this form have it (ashkamath/mdetr).
- own, as JSON lines or a list: {"image", "height", "width", "objects": [{"name", "bbox", "segmentation"}]}
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from prismer_jax.datasets.compact_dicts import CompactDicts
from prismer_jax.datasets.formats import coco
from prismer_jax.datasets.formats.row import id_text
from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.objects import shapes
from prismer_jax.pp.image_size import image_size
from prismer_jax.pp.labels import same_proportions

Example = dict[str, Any]


def load(
    path: storage.PathLike,
    *,
    images: storage.PathLike | None = None,
    task: Literal["photo", "name"] = "photo",
    crowds: bool = False,
    limit: int | None = None,
    max_bad: float = 0.01,
) -> Source:
    """Returns a source of photos with objects; photos are opened when an example is read.

    Args:
      path: the list, .json or .jsonl.
      images: the folder of the photos; by default the list's own.
      task: 'photo', an example a photo with all its objects; 'name', one for each name in each photo.
      crowds: also what stands for a crowd, as evaluations need it; nobody learns from it.
      limit: takes only so many examples, the first ones.
      max_bad: the fraction of photos and objects that may be unusable; they are counted and left out, with a warning.

    An example has `id`, `photo`, `image` (a path) and `objects` (see pp/objects.py), which say `crowd` where it is one.
    Height and width are those of the upright photo, or of a larger or smaller one.

    Raises:
      UserError: there is no such list, or more of it than max_bad cannot be used: names the first.
    """
    choose("task of objects", task, ("photo", "name"))
    path, dropped, total, photos = storage.on_disk(path), Dropped(), 0, []
    folder = storage.on_disk(images) if images else path.parent
    for number, entry in enumerate(_entries(path, dropped), 1):
        total += 1 + (len(listed) if isinstance(listed := entry.get("objects"), list) else 0)
        try:
            photos.append(_photo(entry, folder, crowds, dropped, f"{path}: photo {number}"))
        except BadSample as error:
            dropped.add(error.reason, str(error))
    if not photos or dropped.total > max_bad * total:
        first = dropped.lines()[0].strip().rstrip(".") if dropped.total else "it lists no photos"
        raise UserError(f"{path}: {dropped.total} of {total} photos and objects cannot be used: {first}.")
    dropped.warn(path)
    if task == "name":
        photos = [part for photo in photos for part in _by_name(photo)]
    return Source(photos[:limit])


class Source(CompactDicts):
    """Examples of photos with objects: `len(source)`, `source[i]`."""

    def __getitem__(self, index: int) -> Example:
        """Raises BadSample for a photo of other proportions than its list says: its boxes would be of other places."""
        example = super().__getitem__(index)
        for height, width in (one["size"] for one in example["objects"][:1]):
            photo = image_size(example["image"])
            if not same_proportions((height, width), photo):
                raise BadSample(
                    f"{example['image']}: has {photo[1]}x{photo[0]} pixels as its EXIF orientation shows it, and its "
                    f"boxes are of {width}x{height}. Write width, height and boxes of the photo as it is shown.",
                    "boxes of another size",
                )
        return example

    def name(self, index: int) -> str:
        return self[index]["id"]


def _entries(path: pathlib.Path, dropped: Dropped) -> Iterable[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else None
        content = json.loads(text) if lines is None else [json.loads(line) for line in lines]
        content = _of_coco(content, dropped) if isinstance(content, Mapping) else content
    except FileNotFoundError:
        raise UserError(f"{path}: no such list of objects.") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: is no list of objects ({what}). Give COCO's instances, or JSON lines.") from None
    if not isinstance(content, list) or not all(isinstance(entry, Mapping) for entry in content):
        raise UserError(f"{path}: is no list of objects. Give COCO's instances, or JSON lines.")
    return content


def _of_coco(content: Mapping[str, Any], dropped: Dropped) -> list[Mapping[str, Any]]:
    names = {id_text(one["id"]): one["name"] for one in content.get("categories") or ()}
    coco.names(content["images"])  # raises where two have one id
    photos = {id_text(one["id"]): {**one, "image": one["file_name"], "objects": []} for one in content["images"]}
    for one in content["annotations"]:
        image, kind = one["image_id"], one.get("category_id")
        if (photo := photos.get(id_text(image))) is None:
            dropped.add("unlisted photo", f"photo {image!r} of an annotation is not among its images")
        elif name := photo.get("caption") or names.get(id_text(kind)):
            photo["objects"].append({**one, "name": name})
        else:
            dropped.add("unlisted category", f"category {kind!r} of an annotation is not among its categories")
    return list(photos.values())


def _photo(entry: Mapping[str, Any], folder: pathlib.Path, crowds: bool, dropped: Dropped, where: str) -> Example:
    try:
        image, size = str(folder / entry["image"]), (int(entry["height"]), int(entry["width"]))
        listed = list(entry["objects"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(f"{where} lacks {error}: it needs image, height, width and objects", "bad entry") from None
    if not os.path.exists(image):
        raise BadSample(f"{image}: missing photo", "missing photo")
    objects = []
    for one in listed:
        if not isinstance(one, Mapping) or not one.get("iscrowd") or crowds:
            try:
                objects.append(_object(one, size, where))
            except BadSample as error:
                dropped.add(error.reason, str(error))
    return {"id": str(entry.get("id", entry["image"])), "photo": image, "image": image, "objects": objects}


def _object(one: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    try:
        name, outline = str(one["name"]), one.get("segmentation") or None
        if "bbox" in one:
            x, y, width, height = map(float, one["bbox"])
            box = np.clip(np.array([y, x, y + height, x + width]) / [*size, *size], 0, 1).tolist()
        else:
            box = shapes.box_of(shapes.mask_of(outline, size)) or (0, 0, 0, 0)
    except BadSample as error:
        raise BadSample(f"{where}: {error}", error.reason) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadSample(f"{where}: an object lacks {error}: it needs name and bbox", "bad object") from None
    if not (box[2] > box[0] and box[3] > box[1]):
        raise BadSample(f"{where}: the box of {name} has no pixels", "box of no pixels")
    thing = {"name": name, "box": box, "segmentation": outline, "size": size}
    return thing | ({"crowd": True} if one.get("iscrowd") else {})


def _by_name(photo: Example) -> Iterable[Example]:
    for name in dict.fromkeys(one["name"] for one in photo["objects"]):
        chosen = [one for one in photo["objects"] if one["name"] == name]
        yield {**photo, "id": f"{photo['id']}#{name}", "objects": chosen}
