"""The files of label maps: how they are named, written and read.

They lie as in the official repository (NVlabs/prismer, dataset/utils.py): `FOLDER/<expert>/<image path>.png` beside
`.json` (detection: instance id -> class id) or `.npz` (words: features and texts). A photo without a label has no file,
and the background in its place; so do zero bytes in a record (shards/records.py), but a file of zero bytes is one that
was cut. What the maps of each expert mean is said by labels.py, and a PNG is read by label_png.py.
"""

from __future__ import annotations

import glob
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.files import storage
from prismer_jax.label_png import DAMAGED, PNG_END
from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS, FEATURES, WORDS_KEY, no_classes, no_words
from prismer_jax.registry import READING

RECORD = "make_labels.json"  # in a folder of label files: which weights made those of each expert


def path_of(folder: storage.PathLike, expert: str, image: storage.PathLike) -> pathlib.Path:
    """Returns the path of an image's PNG, `folder/expert/image.png`; `image` is relative to the images' folder.

    `folder` may place the expert itself, as in 'labels/{expert}/vqav2' for the official per-data-set folders. The path
    lies in the folder, whatever a list calls the image; see `inside`.
    """
    folder = os.fspath(folder)
    root = pathlib.Path(folder.replace("{expert}", expert)) if "{expert}" in folder else pathlib.Path(folder) / expert
    return root.joinpath(*inside(image)).with_suffix(".png")


def inside(image: storage.PathLike) -> list[str]:
    """Returns the parts of an image's path without those that would lead out of a folder: the root, and '..'."""
    path = pathlib.PurePath(image)
    return [part for part in path.parts if part not in (path.anchor, "..")]


def locate(folder: storage.PathLike, experts: Sequence[str], image: storage.PathLike) -> dict[str, Any]:
    """Returns the label part of an example: paths of the PNGs, the tables of classes and word features, `words`.

    An image without a label file for an expert simply lacks that key: it is the background.

    Raises:
      BadSample: a PNG has zero bytes; a side file is missing, malformed, or only the official pickled `.pt` is there.
    """
    example: dict[str, Any] = {}
    for expert in experts:
        png = path_of(folder, expert, image)
        if not os.path.exists(png):  # nor where the name is too long for the disk, which pathlib's would raise
            continue
        if png.stat().st_size == 0:
            raise BadSample(
                f"{png}: has zero bytes. Make the label again (tools.make_labels --recheck), or delete it: a photo "
                "without a label file has the background.",
                DAMAGED,
            )
        example[f"labels/{expert}"] = str(png)
        if EXPERTS[expert].embed == "instances":
            example[CLASSES_KEY] = read_classes(png.with_suffix(".json"))
        elif EXPERTS[expert].embed == "words":
            example[WORDS_KEY], example["words"] = read_words(png.with_suffix(".npz"))
    return example


def is_whole(folder: storage.PathLike, expert: str, image: storage.PathLike) -> bool:
    """Returns whether an image's label by an expert is there, complete, with the side file that belongs to it."""
    png = path_of(folder, expert, image)
    try:
        with open(png, "rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            if file.read() != PNG_END:
                return False
    except (OSError, ValueError):  # absent, or shorter than any PNG
        return False
    side = {"instances": ".json", "words": ".npz"}.get(EXPERTS[expert].embed)
    if side is None or not os.path.exists(path := png.with_suffix(side)):
        return side is None
    return zipfile.is_zipfile(path) if side == ".npz" else path.read_bytes().rstrip().endswith(b"}")


def home(folder: storage.PathLike) -> pathlib.Path:
    """Returns the folder of RECORD: the labels' folder itself; labels/vqav2 for 'labels/{expert}/vqav2'."""
    return pathlib.Path(os.fspath(folder).replace("{expert}", ""))


def given(folder: storage.PathLike) -> dict[str, Any]:
    """Returns {expert: how its labels were made} of a folder's label files; None where RECORD does not say how,
    or data sets differ.

    `folder` may place expert and data set, as in 'labels/{expert}/{dataset}' or 'labels/{dataset}/{expert}'.

    Raises:
      UserError: RECORD is damaged.
    """
    start, dataset, end = os.fspath(folder).partition("{dataset}")
    if dataset and "{expert}" not in start:  # each data set has a folder of labels
        folders = [f"{path}{end}" for path in sorted(glob.glob(f"{glob.escape(start)}*"))]
    else:
        folders = [start]
    made: dict[str, list[Any]] = {name: [] for name in EXPERTS}
    for text in folders:
        made_with = _recorded(home(text) / RECORD)
        for name in EXPERTS:
            if path_of(text, name, "photo").parent.is_dir():
                made[name].append(made_with.get(name))
    return {name: how[0] if how.count(how[0]) == len(how) else None for name, how in made.items() if how}


def _recorded(path: pathlib.Path) -> dict[str, Any]:
    """Returns what RECORD says, nothing where there is none; raises UserError for a damaged one."""
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, RecursionError):
        remedy = 'Write again how the labels were made, as {"depth": "trained weights"}, or delete it'
        raise UserError(f"{path}: is no JSON table of experts. {remedy} where nobody knows.") from None


def record(folder: storage.PathLike, made_with: Mapping[str, str]) -> None:
    """Notes in RECORD how the labels of experts are made, {expert: how}, before any is written.

    Raises:
      UserError: the folder holds labels of one of them that were made otherwise, or RECORD is damaged.
    """
    path = home(folder) / RECORD
    before = _recorded(path)
    for expert, how in made_with.items():
        if before.get(expert, how) != how:
            raise UserError(
                f"{folder}: holds labels of {expert} made with {before[expert]}, not with {how}. Choose another "
                f"folder, or delete {path_of(folder, expert, 'photo').parent} and {path}."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, before | dict(made_with))


def read_classes(path: storage.PathLike, data: bytes | None = None) -> np.ndarray:
    """Reads a detection side file {instance id: class id} to int32 [256], -1 where there is no instance.

    `data` is what the file holds, where it lies in another; `path` then names it in messages.
    """
    path, table = pathlib.Path(path), no_classes()
    try:
        entries = json.loads(path.read_bytes() if data is None else data)
        for instance, label in entries.items():
            if not 0 <= int(instance) < BACKGROUND:
                raise ValueError(f"instance {instance} is not in 0..254")
            table[int(instance)] = int(label)
    except FileNotFoundError:
        raise BadSample(f"{path}: missing; it says the class of each instance in the PNG beside it.") from None
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise BadSample(f"{path}: not a JSON table of instance id to class id ({error}).") from None
    return table


def read_words(path: storage.PathLike, data: bytes | None = None) -> tuple[np.ndarray, list[str]]:
    """Reads a word side file `.npz` to (features float16 [256, 64], words); `data` as in `read_classes`."""
    path, table = pathlib.Path(path), no_words()
    if data is None and not path.exists():
        if path.with_suffix(".pt").exists():  # a pickle can run any program: it is not opened here
            remedy = "only the official repository's pickled .pt is there; run python -m tools.convert ocr-labels"
        else:
            remedy = "missing; it holds the features of the words in the PNG beside it"
        raise BadSample(f"{path}: {remedy}.")
    try:
        with READING, np.load(path if data is None else io.BytesIO(data), allow_pickle=False) as file:
            features, words = file["features"], [str(word) for word in file["words"]]
        if features.dtype.kind not in "iuf" or features.shape != (len(words), FEATURES):  # V2: bfloat16 of NumPy's save
            raise ValueError(f"the features of {len(words)} words are {features.dtype.str} {list(features.shape)}")
        with np.errstate(over="ignore"):
            table[: len(features)] = features
        if not np.isfinite(table).all():
            raise ValueError("a feature is no finite float16")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadSample(f"{path}: not an .npz with features [n, {FEATURES}] and words ({error}).") from None
    return table, words


def write(
    folder: storage.PathLike,
    expert: str,
    image: storage.PathLike,
    map: np.ndarray,
    *,
    classes: Sequence[int] | None = None,
    features: np.ndarray | None = None,
    words: Sequence[str] = (),
) -> pathlib.Path:
    """Writes one label map and its side file, each whole or not at all; returns the PNG's path.

    Args:
      folder, expert, image: as in `path_of`.
      map: uint8 [h, w, channels].
      classes: detection only: class id of instance 0, 1, ...
      features: words only: [n, 64], of word 0, 1, ...; stored as float16.
      words: their texts.
    """
    png = path_of(folder, expert, image)
    png.parent.mkdir(parents=True, exist_ok=True)
    for suffix, data in files(expert, map, classes=classes, features=features, words=words).items():
        storage.write(png.with_suffix(suffix), data)
    return png


def files(
    expert: str,
    map: np.ndarray,
    *,
    classes: Sequence[int] | None = None,
    features: np.ndarray | None = None,
    words: Sequence[str] = (),
) -> dict[str, bytes]:
    """Returns the files of one label, {suffix: bytes}; the PNG comes last, so that it is never without the other.

    The arguments are those of `write`.

    Raises:
      ValueError: the arguments do not fit the expert or one another.
    """
    row = choose("expert", expert, EXPERTS)
    if map.dtype != np.uint8 or map.shape[2:] != (row.channels,):
        raise ValueError(f"{expert}: a label map is uint8 [h, w, {row.channels}], got {map.dtype} {map.shape}")
    sides = {}
    if row.embed == "instances":
        table = {str(instance): int(label) for instance, label in enumerate(() if classes is None else classes)}
        sides[".json"] = json.dumps(table).encode()
    elif row.embed == "words":
        sides[".npz"] = _words_file(np.zeros((0, FEATURES)) if features is None else features, words)
    return sides | {".png": encode(map)}


def parse(expert: str, files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Returns the label part of an example, as `locate` does, from the result of `files`; `where` is for messages."""
    example: dict[str, Any] = {f"labels/{expert}": files[".png"]}
    if ".json" in files:
        example[CLASSES_KEY] = read_classes(f"{where}.json", files[".json"])
    if ".npz" in files:
        example[WORDS_KEY], example["words"] = read_words(f"{where}.npz", files[".npz"])
    return example


def write_words(path: pathlib.Path, features: np.ndarray, words: Sequence[str]) -> None:
    """Writes a word side file `.npz`, whole or not at all: features [n, 64], stored as float16, and n texts."""
    storage.write(path, _words_file(features, words))


def _words_file(features: np.ndarray, words: Sequence[str]) -> bytes:
    features = np.asarray(features)
    if features.shape != (len(words), FEATURES):
        raise ValueError(f"features {features.shape} do not fit {len(words)} words")
    buffer = io.BytesIO()
    np.savez(buffer, features=features.astype(np.float16), words=np.asarray(words, np.str_))
    return buffer.getvalue()


def encode(label: np.ndarray) -> bytes:
    """Encodes a label map uint8 [h, w, 1 or 3] as a PNG that is fast to read: one filter for all rows.

    Filters chosen anew in each row, as usual, take twice as long to undo; of two quick ones the smaller is taken.
    Measured on maps of 20 COCO photos of 480 pixels (OpenCV 5, one core, bytes and decoding): depth 35 kB in 0.6 ms
    where Pillow's files have 37 kB and take 1.1 ms, normals 222 kB in 2.4 ms instead of 190 kB in 3.2 ms, edges 126 kB
    in 1.0 ms instead of 116 kB in 1.7 ms, segmentation 5.6 kB in 0.2 ms instead of 7.0 kB in 0.5 ms.
    """
    pixels = label if label.shape[2] == 1 else label[..., ::-1]
    common = (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT)
    encodings = [
        cv2.imencode(".png", pixels, (*common, cv2.IMWRITE_PNG_FILTER, one))[1]
        for one in (cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_UP)
    ]
    return min(encodings, key=len).tobytes()
