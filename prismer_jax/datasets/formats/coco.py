"""Captions as COCO's files have them, and Karpathy's splits of them.

- COCO's: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}; annotations without a caption
  (boxes, polygons) say nothing here. NoCaps' has a `domain` with each image. An image may have its captions itself.
- Karpathy's: {"images": [{"filepath", "filename", "cocoid", "split", "sentences": [{"raw"}]}]}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from prismer_jax.datasets.formats.entries import count_unread
from prismer_jax.datasets.formats.row import Entry, LeftOut, Row, captions_of, each, id_text, texts
from prismer_jax.errors import BadSample

KARPATHY = {"train": ("train", "restval")}  # 113,287 photos of COCO, as everybody trains
# What an annotation has beside a caption: its ids, and the boxes and polygons of COCO's other files.
_OF_ANNOTATION = frozenset({"id", "image_id", "category_id", "area", "bbox", "iscrowd", "segmentation"}) | {
    "keypoints",
    "num_keypoints",
    "segments_info",
    "file_name",
}


def captions(content: Entry, left_out: LeftOut) -> Iterator[Row]:
    """Yields the rows of a file in COCO's format.

    Raises:
      ValueError: two photos have one id, so that nobody can know whose their captions are.
    """
    images = content["images"]
    own_captions = _by_image(content.get("annotations") or (), names(images), left_out)

    def row(image: Entry) -> Iterable[Row]:
        id = id_text(image["id"])
        inside = captions_of(image) or []
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            raise BadSample(f"the path of a photo is {image['file_name']!r}", "entry without photo")
        return (Row(image["file_name"], None, id, own_captions.pop(id, []) + inside, None, texts(image)),)

    yield from each(images, row, left_out.entries, "image")


def karpathy(content: Entry, split: str | None, left_out: LeftOut) -> Iterator[Row]:
    """Yields the rows of a split.

    Raises:
      ValueError: there is no such split.
    """
    splits = {image.get("split") for image in content["images"]}
    if split is not None and split not in splits:
        raise ValueError(f"it has no split {split!r}, but {', '.join(sorted(map(str, splits)))}")
    selected = splits if split is None else KARPATHY.get(split, (split,))

    def row(image: Entry) -> Iterable[Row]:
        if image.get("split") not in selected:
            return ()
        id = next((id_text(image[key]) for key in ("cocoid", "imgid") if key in image), None)
        path = os.path.join(image.get("filepath", ""), image["filename"])
        return (Row(path, None, id, captions_of(image, ("sentences",)) or []),)

    yield from each(content["images"], row, left_out.entries, "image")


def names(images: Iterable[Any]) -> dict[str, Any]:
    """Returns {id: file name}; what has neither is left to the rows' reader.

    Raises:
      ValueError: two photos have one id.
    """
    by_id: dict[str, Any] = {}
    for image in images:
        if not isinstance(image, dict) or "id" not in image:
            continue
        name = image.get("file_name")
        if by_id.setdefault(id := id_text(image["id"]), name) != name:
            raise ValueError(
                f"the photos {by_id[id]} and {name} have one id, {image['id']!r}: nobody can tell which is "
                "meant. Number the photos anew where files are merged, or give the files one by one"
            )
    return by_id


def _by_image(annotations: Iterable[Any], names: dict[str, Any], left_out: LeftOut) -> dict[str, list[Any]]:
    """Returns {id of a photo: its captions}."""
    captions: dict[str, list[Any]] = {id: [] for id in names}

    def read(annotation: Entry) -> Iterable[Row]:
        texts = captions_of(annotation) if "caption" not in annotation else [annotation["caption"]]
        if texts is None:
            if unread := annotation.keys() - _OF_ANNOTATION:
                count_unread(annotation, unread, f"photo {annotation.get('image_id')!r}", left_out.texts)
            return ()
        id = id_text(annotation["image_id"])
        if id not in captions:
            raise BadSample(f"photo {annotation['image_id']!r} is not among its images", "caption of an unlisted photo")
        captions[id] += texts
        return ()

    for _ in each(annotations, read, left_out.entries, "annotation"):
        pass
    return captions
