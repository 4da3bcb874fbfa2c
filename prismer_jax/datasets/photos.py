"""Photos alone: files and folders, or photos in memory. Of what lies beside files only expert labels are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from prismer_jax.datasets import folders, label_names
from prismer_jax.datasets.lists.source import Source
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.storage import PathLike
from prismer_jax.labels import EXPERTS, select
from prismer_jax.pp.image import to_rgb

Photo = PathLike | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray
Example = dict[str, Any]


def load(
    images: PathLike | Sequence[PathLike],
    *,
    labels: PathLike | None = None,
    experts: str | Sequence[str] = tuple(EXPERTS),
    repeats: bool = False,
) -> Source:
    """Returns a source of photos, in the order of `folders.photos`, without the captions that lie beside them.

    Args:
      images: a folder (recursively), a file, or several of either.
      labels: as in `lists.load`.
      experts: whose label files are looked for.
      repeats: as in `folders.photos`.

    Raises:
      UserError: there is no such photo or folder, or no photo in a folder.
    """
    labels = label_names.folder(labels)
    dropped = Dropped()
    every, own = folders.photos(images, dropped, repeats), ("id", "name", "image")
    examples = ({"source": "", "captions": [], **{key: photo[key] for key in own}} for photo in every)
    photos = list(examples if labels is None else label_names.distinct(examples, labels, dropped))
    where = folders.shown([images] if isinstance(images, PathLike) else images)
    dropped.warn(where)
    return Source(photos, "caption", labels, select(experts), dropped)


def are_files(images: Photo | Sequence[Photo]) -> bool:
    """Returns whether these are files and folders, for `load`, and none is a photo in memory, for `Photos`."""
    photos = several(images)
    return bool(photos) and all(isinstance(photo, PathLike) for photo in photos)


def several(images: Photo | Iterable[Photo]) -> list[Photo]:
    """Returns photos as a list, also of one or of an iterator, as Path.glob gives them; open files are read.

    Raises:
      UserError: this is no photo, or an open file cannot be read.
    """
    one = isinstance(images, PathLike | bytes | bytearray | Image.Image) or hasattr(images, "read")
    one = one or getattr(images, "ndim", 4) < 4
    if not one and not isinstance(images, Iterable):
        raise UserError(f"{images!r} is no photo: give files, folders, bytes, Pillow's images or arrays.")
    return [_unopened(photo) for photo in ([images] if one else images)]


def _unopened(photo: Any) -> Photo:
    """Returns as bytes what an open file holds from its beginning, or other bytes than `bytes`; all else as it is."""
    if isinstance(photo, bytearray) or (isinstance(photo, memoryview) and photo.ndim == 1):
        return bytes(photo)
    if not hasattr(photo, "read"):
        return photo
    try:
        if getattr(photo, "seekable", bool)():
            photo.seek(0)  # what was just written to is at its end
        data, why = photo.read(), "it is of text"
    except (OSError, ValueError) as error:
        data, why = None, error
    if not isinstance(data, bytes):
        raise UserError(f"{photo!r} cannot be read as a photo ({why}). Give a file that is open for reading bytes.")
    return data


class Examples:
    """A source of examples that are in memory, {"id", "image", ...}; see Captioner.ask.

    Raises:
      UserError: one is no such dict.
    """

    def __init__(self, examples: Iterable[Mapping[str, Any]]) -> None:
        self.examples = list(examples)
        for place, example in enumerate(self.examples):
            if not isinstance(example, Mapping) or not {"id", "image"} <= example.keys():
                raise UserError(f"Example {place} is no dict with an id and an image, which may be None.")

    def __len__(self) -> int:
        return len(self.examples)

    def name(self, index: int) -> str:
        return self.examples[index]["id"]

    def __getitem__(self, index: int) -> Example:
        """Raises BadSample for a text that cannot be encoded, and for an array that is no photo."""
        example, where = dict(self.examples[index]), f"example {self.examples[index]['id']}"
        for key in ("question", "begun"):
            if (text := example.get(key)) is not None:
                check_text(text, f"{where}: ")
        if isinstance(photos := example["image"], np.ndarray):
            example["image"] = _pixels(photos, where)
        elif isinstance(photos, list):
            example["image"] = [_pixels(one, where) if isinstance(one, np.ndarray) else one for one in photos]
        return example


def check_text(text: Any, where: str = "") -> None:
    """Raises BadSample for what is no text, or cannot be encoded, as one from a command line of another encoding."""
    if not isinstance(text, str):
        raise BadSample(f"{where}{text!r} is no text: give prompts and questions as texts.", "no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        said = f"{where}{text!a} is not UTF-8, which tokenizers read: write the text in it."
        raise BadSample(said, "text that is not UTF-8") from None


NO_PHOTO = Examples([{"id": "", "image": None}])  # of a prompt alone


class Photos(Examples):
    """A source of photos in memory: bytes of files, Pillow's images, and arrays, of any number of channels.

    Each is called by its place, '0', '1' ...; a path among them is called as it is, and read when it is its turn.

    Raises:
      UserError: there is none.
    """

    def __init__(self, images: Photo | Sequence[Photo]) -> None:
        photos = several(images)
        if not photos:
            raise UserError("There is no photo: give files, folders, bytes, Pillow's images or arrays.")
        files = [os.fspath(photo) if isinstance(photo, PathLike) else None for photo in photos]
        super().__init__({"id": files[i] or str(i), "image": files[i] or photo} for i, photo in enumerate(photos))

    def __getitem__(self, index: int) -> Example:
        """Raises BadSample for an array that is no photo, or an image of Pillow that cannot be loaded."""
        example = dict(self.examples[index])
        if isinstance(example["image"], str | bytes):
            return example
        return example | {"image": _pixels(example["image"], f"image {example['id']}")}


def _pixels(image: Image.Image | np.ndarray, where: str) -> np.ndarray:
    """Returns upright uint8 RGB [h, w, 3]; transparency on white, as of files."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or not 2 <= array.ndim <= 3 or array.shape[2:] not in ((), (1,), (3,), (4,)):
            raise BadSample(
                f"{where}: an array of {array.dtype} {list(array.shape)} is no photo. Give uint8 [height, width, 3], "
                "from 0 to 255.",
                "array that is no photo",
            )
        if not array.size:
            raise BadSample(f"{where}: an array of no pixels.", "array that is no photo")
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    try:
        return to_rgb(ImageOps.exif_transpose(image), where)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises where it loads a broken file
        raise BadSample(f"{where}: not a readable image ({error}).", "damaged image") from None


class Asked:
    """A source of photos, each with one thing after the other that is asked about it."""

    def __init__(self, source: Any, asked: Sequence[Mapping[str, Any]]) -> None:
        self.source, self.asked = source, asked

    def __len__(self) -> int:
        return len(self.source) * len(self.asked)

    def name(self, index: int) -> str:
        return self.source.name(index // len(self.asked))

    def __getitem__(self, index: int) -> Example:
        photo, number = divmod(index, len(self.asked))
        return {**self.source[photo], **self.asked[number]}
