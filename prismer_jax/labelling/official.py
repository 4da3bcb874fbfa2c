"""What label files need beyond our own reading, for the official code (NVlabs/prismer, dataset/utils.py) to read them.

It opens a photo as it is stored, whatever its EXIF orientation says, and never compares its size with a label's; it
puts '.png' wherever the photo's suffix stands in its path; and it has a word's features from a `.pt`, without which the
photo has no words. All else it reads as we do: maps, and classes in `.json`, which must be there for empty maps too.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from prismer_jax import label_files, labels
from prismer_jax.errors import BadSample
from prismer_jax.files import regular
from prismer_jax.labelling.pipeline import Photo
from prismer_jax.pp.image import EXIF_ORIENTATION, UPRIGHT
from prismer_jax.weights import ocr_words


def check(photo: Photo) -> None:
    """Raises BadSample where the official code would look for another file, or see the photo turned otherwise."""
    suffix = photo.name.rpartition(".")[2]
    theirs, ours = photo.name.replace(f".{suffix}", ".png"), label_files.path_of("", "", photo.name)
    if pathlib.Path(theirs) != ours:
        raise BadSample(
            f"{photo.name}: the official code looks for its labels as {theirs}, not {ours}. Rename the photo.",
            "name that the official code takes otherwise",
        )
    if _turned(photo.source):
        raise BadSample(
            f"{photo.name}: EXIF turns it, but not for the official code: no label fits both. Save it upright.",
            "photo turned by EXIF",
        )


def _turned(source: str | bytes) -> bool:
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else regular.opened(source) as file,
            Image.open(file) as image,
        ):
            # Pillow itself turns a TIFF as it is loaded, for whoever loads it.
            return image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION) in UPRIGHT
    except Exception:  # what else is wrong with the photo, reading it will say
        return False


def write_words(png: pathlib.Path, features: np.ndarray | None, texts: Sequence[str]) -> None:
    """Writes the `.pt` that goes with a map, with the numbers of the `.npz`: features [n, 64], rounded to float16."""
    rows = np.zeros((0, labels.FEATURES)) if features is None else np.asarray(features)
    png.parent.mkdir(parents=True, exist_ok=True)
    ocr_words.write_official(png.with_suffix(".pt"), rows.astype(np.float16), texts)


def complete(folder: pathlib.Path) -> None:
    """Writes the `.pt` of words that were labelled without it: of every `.npz` below a folder that has none."""
    for path in sorted(folder.rglob("*.npz")):
        if not path.with_suffix(".pt").exists():
            features, texts = label_files.read_words(path)
            write_words(path, features[: len(texts)], texts)
