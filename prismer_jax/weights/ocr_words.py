"""Side files of official OCR labels: pickled .pt files, and the .npz files that prismer_jax.label_files reads instead.

The official file holds {id: {'features': float32 [64], 'text': str}} (experts/generate_ocrdet.py).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from prismer_jax import label_files, labels
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.weights import safe, write


def convert(folder: storage.PathLike) -> int:
    """Writes an .npz beside every .pt below a folder that has none yet; returns how many.

    They are read without executing anything in them.

    Raises:
      UserError: there is no .pt, or one is damaged or holds something else; those before it are converted.
    """
    files = sorted(storage.on_disk(folder).rglob("*.pt"))
    if not files:
        raise UserError(f"{folder}: has no .pt files; give the folder of labels made by the official ocr_detection.")
    missing = [path for path in files if not path.with_suffix(".npz").exists()]
    for path in missing:
        label_files.write_words(path.with_suffix(".npz"), *_read(path))
    return len(missing)


def write_official(path: storage.PathLike, features: np.ndarray, texts: Sequence[str]) -> None:
    """Writes a .pt file of n words, which torch.load(weights_only=True) reads; features [n, 64]."""
    rows = zip(np.asarray(features, np.float32), texts, strict=True)
    write.torch_file(path, {number: {"features": row, "text": text} for number, (row, text) in enumerate(rows)})


def _read(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    tree = safe.load_tree(path)
    try:
        words = [tree[i] for i in range(len(tree))]
        features = np.array([word["features"] for word in words], np.float32).reshape(len(words), labels.FEATURES)
        texts = [word["text"] for word in words]
        if len(words) > labels.BACKGROUND or not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: is no table of at most {labels.BACKGROUND} words, {{id: {{'features': [64], 'text': ...}}}}."
        ) from None
    return features, texts
