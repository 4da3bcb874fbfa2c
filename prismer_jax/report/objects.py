"""Objects that a model has written of a photo: in pixels, as a picture, and as label maps for Prismer."""

from __future__ import annotations

import itertools
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prismer_jax import label_files, labels
from prismer_jax.datasets import label_names
from prismer_jax.files import storage
from prismer_jax.objects import shapes, spelling
from prismer_jax.objects.codec import MaskCodec
from prismer_jax.report.draw import id_colors

Located = dict[str, Any]
DRAWN = DETECTION, SEGMENTATION = "obj_detection", "seg_coco"  # labels that objects are saved as
OPACITY = 0.45  # of a mask in a picture


def located(
    text: str, size: tuple[int, int], codec: MaskCodec | None, scale: int = spelling.LAST + 1
) -> tuple[list[Located], int]:
    """Returns the objects that a text speaks of, in pixels, and how many more are broken (`objects.words.parse`).

    Args:
      text: what a model said.
      size: height and width of the photo.
      codec: decodes masks; None leaves them out.
      scale: what the numbers of boxes are divided by.

    Returns:
      [{"name", "box": [x1, y1, x2, y2]}], and of a mask "mask", COCO's compressed run lengths. A mask whose box has no
      pixels is broken.
    """
    boxes, broken = spelling.parse(text, scale)
    objects = []
    for one in boxes:
        y1, x1, y2, x2 = one.box
        pixels = [round(value, 1) for value in (x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0])]
        objects.append({"name": one.name, "box": pixels})
        if one.codes and codec is not None:
            mask = shapes.pasted(codec.decode(np.array([one.codes]))[0], one.box, size)
            if mask is None:
                objects.pop()
                broken += 1
            else:
                objects[-1]["mask"] = shapes.run_lengths(mask)
    return objects, broken


def line_of(one: Located) -> str:
    """Returns an object as a line for people: its name, its box, and how many pixels its mask has."""
    text = f"{one['name'] or 'object'} at {' '.join(f'{value:g}' for value in one['box'])}"
    if "mask" in one:
        text += f", {int(shapes.mask_of(one['mask'], one['mask']['size']).sum())} pixels"
    return text


def picture(photo: np.ndarray, objects: Sequence[Located]) -> Image.Image:
    """Returns a photo uint8 [h, w, 3] with boxes, names and masks; each name has its colour."""
    names = {name: number for number, name in enumerate(dict.fromkeys(one["name"] for one in objects))}
    colors = [tuple(id_colors()[names[one["name"]] % labels.BACKGROUND].tolist()) for one in objects]
    canvas = photo.astype(np.float32)
    for one, color in zip(objects, colors, strict=True):
        if "mask" in one:
            mask = shapes.mask_of(one["mask"], photo.shape[:2])
            canvas[mask] += OPACITY * (np.array(color, np.float32) - canvas[mask])
    image = Image.fromarray(canvas.round().astype(np.uint8))
    draw, side = ImageDraw.Draw(image), max(10, min(image.size) // 32)
    font = ImageFont.load_default(side)
    for one, color in zip(objects, colors, strict=True):
        x1, y1, x2, y2 = one["box"]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=max(1, side // 6))
        if one["name"]:
            place = draw.textbbox((x1, max(0, y1 - side * 1.3)), one["name"], font=font)
            draw.rectangle((place[0] - 2, place[1] - 2, place[2] + 2, place[3] + 2), fill=color)
            ink = "black" if sum(color) > 3 * 128 else "white"
            draw.text((x1, max(0, y1 - side * 1.3)), one["name"], fill=ink, font=font)
    return image


class Labels:
    """Writes objects as label files (label_files.py): as instances, and where they have masks, as classes.

    Of objects that overlap, the smaller one is in front.

    Args:
      folder: of labels.
      name: what a result calls its photo -> what its label files are called.
      classes: {expert: names of its classes by their ids}; commas separate words for one class.
      made_with: how these labels are made.

    Attributes:
      unknown: how often each name was met that is no class of the detector's, and is left out.
      unsaved: photos, once for each result whose label files would be those of an earlier one, which stay.

    Raises:
      UserError: the folder holds labels that were made otherwise.
    """

    def __init__(
        self,
        folder: storage.PathLike,
        name: Callable[[str], str],
        classes: Mapping[str, Sequence[str]],
        made_with: str,
    ) -> None:
        self.folder, self.name, self.unknown = folder, name, Counter()
        self.unsaved, self._names = Counter(), set()
        self._any_case = label_names.ignores_case(folder)
        self._ids = {
            expert: {word.strip().lower(): number for number, names in enumerate(rows) for word in names.split(",")}
            for expert, rows in classes.items()
        }
        label_files.record(folder, dict.fromkeys(DRAWN, made_with))

    def write(self, image: str, objects: Sequence[Located], size: tuple[int, int]) -> None:
        """Writes the labels of a photo of that height and width; where there is nothing to label, no file."""
        name = label_names.key(self.name(image), self._any_case)
        if name in self._names:
            self.unsaved[image] += 1
            return
        self._names.add(name)
        instances, classes = (labels.blank(expert, *size) for expert in DRAWN)
        kinds: list[int] = []
        shown = sorted(((_inside(one, size), one) for one in objects), key=lambda pair: -np.count_nonzero(pair[0]))
        for inside, one in shown:
            word = one["name"].lower()
            kind, stuff = (self._ids[expert].get(word) for expert in DRAWN)
            if kind is None:
                self.unknown[word] += 1
            elif len(kinds) < labels.BACKGROUND:
                instances[inside] = len(kinds)
                kinds.append(kind)
            if "mask" in one and stuff is not None:
                classes[inside] = stuff
        if kinds:
            label_files.write(self.folder, DETECTION, self.name(image), instances, classes=kinds)
        if (classes != labels.BACKGROUND).any():
            label_files.write(self.folder, SEGMENTATION, self.name(image), classes)


def _inside(one: Located, size: tuple[int, int]) -> np.ndarray:
    """Returns bool [height, width]: an object's mask, or its box."""
    if "mask" in one:
        return shapes.mask_of(one["mask"], size)
    inside = np.zeros(size, bool)
    x1, y1, x2, y2 = (round(value) for value in one["box"])
    inside[y1:y2, x1:x2] = True
    return inside


class Reader:
    """Adds objects to what a model has said of photos, where it speaks of places; draws and saves them if asked.

    Args:
      read: what a result calls its photo -> uint8 [h, w, 3].
      codec: as of `located`.
      scale: as of `located`.
      pictures: a folder for photos with their objects.
      labels: also writes them as labels.
    """

    def __init__(
        self,
        read: Callable[[str], np.ndarray],
        codec: MaskCodec | None,
        scale: int = spelling.LAST + 1,
        pictures: pathlib.Path | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.read, self.codec, self.scale, self.pictures, self.labels = read, codec, scale, pictures, labels
        self.broken = self.without_mask = 0
        self._drawn: set[str] = set()

    def __call__(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns a result of the captioner with `objects` and `broken` of the first text that is in it.

        Where photos are drawn, `picture` is the path of this one.
        """
        text = next(iter(result.get("captions") or result.get("answers") or ()), "")
        if "<loc" not in text or not result["image"]:
            return result
        photo = self.read(result["image"])
        objects, broken = located(text, photo.shape[:2], self.codec, self.scale)
        self.broken += broken
        self.without_mask += self.codec is None and "<seg" in text
        if self.pictures is not None:
            path = self._picture_path(self.pictures, result["image"])
            path.parent.mkdir(parents=True, exist_ok=True)
            with storage.replacing(path) as name:
                picture(photo, objects).save(name, format="PNG")
            result = {**result, "picture": str(path)}
        if self.labels is not None:
            self.labels.write(result["image"], objects, photo.shape[:2])
        return {**result, "objects": objects, "broken": broken}

    def _picture_path(self, folder: pathlib.Path, image: str) -> pathlib.Path:
        """Returns where a picture goes: called as its photo, with a number where an earlier one is, in any case."""
        first = folder.joinpath(*label_files.inside(image)).with_suffix(".png")
        numbered = (first.with_stem(f"{first.stem}_{number}") for number in itertools.count(2))
        path = next(one for one in itertools.chain([first], numbered) if str(one).casefold() not in self._drawn)
        self._drawn.add(str(path).casefold())
        return path

    def problems(self) -> Iterator[str]:
        """Yields a line for each kind of thing that was left out of all results."""
        if self.broken:
            yield f"{self.broken} objects are broken: their words make no box, or no mask. They were left out."
        if self.without_mask:
            yield f"The masks of {self.without_mask} photos were left out: give their codec, --mask-codec vae-oid.npz."
        if self.labels is not None and self.labels.unknown:
            names = ", ".join(f"{name} ({count})" for name, count in self.labels.unknown.most_common(6))
            yield f"No labels were made of names that are no class of the object detector's: {names}."
        if self.labels is not None and (unsaved := self.labels.unsaved):
            names = ", ".join(list(unsaved)[:6])
            count = unsaved.total()
            yield f"The labels of {count} results were not saved, for their files are those of others: {names}."
