"""The official tables of label embeddings: the vectors that the ids of classes become on their way into the model.

They are CLIP's features of class names, reduced to 64 dimensions by a PCA that OCR's words go through too. Source:
NVlabs/prismer at 4f27ab3, dataset/*_features.pt and clip_pca.pkl, used in dataset/utils.py (post_label_process) and
experts/generate_ocrdet.py. Non-commercial licence.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.labels import EXPERTS, FEATURES
from prismer_jax.weights import safe

CLASSES = {
    "seg_coco": "coco_features.pt",
    "seg_ade": "ade_features.pt",
    "obj_detection": "detection_features.pt",
}
BACKGROUND = "background_features.pt"
PCA = "clip_pca.pkl"
FILES = (*CLASSES.values(), BACKGROUND, PCA)

_PCA_CLASS = "sklearn.decomposition._pca.PCA"
_CLIP_WIDTH = 768  # of ViT-L/14's text features


def convert(folder: storage.PathLike, output: storage.PathLike) -> None:
    """Writes the tables of a folder of official FILES into one .npz, without PyTorch and without unpickling.

    It holds, for each expert of CLASSES, `<expert>/names` [classes] and `<expert>/features` float32 [classes,64], and
    `background` float32 [64], `pca/mean` float64 [768], `pca/components` float64 [64,768]: a CLIP feature x becomes
    (x - mean) @ components.T.

    Raises:
      UserError: a file is missing, damaged or another one; nothing is written then.
    """
    folder, output = storage.on_disk(folder), storage.on_disk(output)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: lacks {', '.join(missing)}, of dataset/ in NVlabs/prismer. Fetch all with python -m "
            f"tools.download label-tables --output {folder}."
        )
    arrays: dict[str, np.ndarray] = {}
    for expert, name in CLASSES.items():
        tree, count = safe.load_tree(folder / name), EXPERTS[expert].num_classes
        names = tree.get("labels") if isinstance(tree, dict) else None
        if not isinstance(names, list) or len(names) != count or not all(isinstance(text, str) for text in names):
            raise UserError(f"{folder / name}: does not name the {count} classes of {expert}. Fetch it again.")
        arrays[f"{expert}/names"] = np.asarray(names)
        arrays[f"{expert}/features"] = _array(tree.get("features"), (count, FEATURES), np.float32, folder / name)
    arrays["background"] = _array(safe.load_tree(folder / BACKGROUND), (FEATURES,), np.float32, folder / BACKGROUND)
    arrays |= {f"pca/{name}": array for name, array in pca(folder / PCA).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing(output) as name, open(name, "wb") as file:
        np.savez(file, **arrays)


def pca(path: storage.PathLike) -> dict[str, np.ndarray]:
    """Reads the official PCA, a pickle of scikit-learn's, without unpickling.

    Returns:
      float64 mean [768] and components [64,768]: a CLIP feature x becomes (x - mean) @ components.T.

    Raises:
      UserError: the file is missing, damaged or another one.
    """
    path = pathlib.Path(path)
    tree = safe.load_tree(path, records=(_PCA_CLASS,))
    tree = tree if isinstance(tree, dict) else {}
    if tree.get("whiten"):
        raise UserError(f"{path}: a PCA that whitens; the official one does not. Fetch it again.")
    return {
        "mean": _array(tree.get("mean_"), (_CLIP_WIDTH,), np.float64, path),
        "components": _array(tree.get("components_"), (FEATURES, _CLIP_WIDTH), np.float64, path),
    }


def load(path: storage.PathLike, experts: Sequence[str] = (*CLASSES, "ocr_detection")) -> dict[str, np.ndarray]:
    """Reads the `tables` of a model's variables from what `convert` wrote; a checkpoint carries them from then on.

    Args:
      experts: those of the model; the ones whose maps hold intensities have no table.

    Returns:
      {expert: float32 [classes + 1, 64]}, the last row the background's vector.

    Raises:
      UserError: the file is missing or damaged, or no such table.
    """
    tables = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            background = file["background"]
            for expert in experts:
                if EXPERTS[expert].storage == "ids":
                    rows = file[f"{expert}/features"] if expert in CLASSES else np.zeros((0, FEATURES), np.float32)
                    tables[expert] = table = np.concatenate([rows, background[None]])
                    if table.dtype != np.float32:
                        raise TypeError(f"{expert} has features of {table.dtype.str} instead of <f4")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{os.fspath(path)}: cannot be read as label tables ({reason}). Make it with python -m tools.convert "
            "label-tables."
        ) from None
    return tables


def _array(value: Any, shape: tuple[int, ...], dtype: Any, path: pathlib.Path) -> np.ndarray:
    if (
        not isinstance(value, np.ndarray)
        or value.shape != shape
        or value.dtype != dtype
        or not np.isfinite(value).all()
    ):
        kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{path}: holds {kind} instead of {np.dtype(dtype)} {list(shape)}. Fetch it again.")
    return value
