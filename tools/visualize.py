"""Draws photos with their label maps: python -m tools.visualize --images FILES_OR_DIR --labels DIR --output out.png

or a sheet of a data set's samples: python -m tools.visualize --dataset scenes --split train --num 12 --output out.png
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prismer_jax import datasets, labels, report
from prismer_jax.errors import UserError, run_main
from prismer_jax.experts.detection import class_names
from prismer_jax.pp import build

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def main(argv: Sequence[str] | None = None) -> None:
    """Writes one picture with a panel a photo."""
    parser = argparse.ArgumentParser(prog="python -m tools.visualize", description=__doc__.splitlines()[0])
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="photos, or folders of them")
    parser.add_argument("--labels", type=pathlib.Path, help="folder of label maps: DIR/<expert>/<photo>.png")
    parser.add_argument("--dataset", help="a data set instead of photos, such as scenes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--task", default="caption", help="caption or question")
    parser.add_argument("--num", type=int, default=12, help="at most so many panels")
    parser.add_argument("--experts", default=None, help="such as depth+edge; default: all that have labels")
    parser.add_argument("--columns", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("labels.png"))
    arguments = parser.parse_args(argv)
    experts = tuple(labels.EXPERTS) if arguments.experts is None else labels.select(arguments.experts)
    if (arguments.images is None) == (arguments.dataset is None):
        raise UserError("Give either --images with --labels, or --dataset.")
    if arguments.num < 1:
        raise UserError(f"--num {arguments.num}: at least 1.")
    if arguments.dataset:
        examples, names = from_dataset(arguments.dataset, arguments.split, arguments.task, arguments.num)
    else:
        if arguments.labels is None:
            raise UserError("--images needs --labels DIR, the folder that holds <expert>/<photo>.png.")
        examples = from_files(arguments.images, arguments.labels, experts, arguments.num)
        names = {"obj_detection": class_names()}
    panels = [report.panel(sample(example, experts, names)) for example in examples]
    report.contact(panels, arguments.columns).save(arguments.output)
    print(f"{arguments.output}: {len(panels)} panels")


def from_dataset(name: str, split: str, task: str, num: int) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """Evenly spaced examples of a data set, and its class names where it has its own."""
    source = datasets.load(name, split=split, task=task)
    stride = max(1, len(source) // num)
    names = getattr(importlib.import_module(datasets.DATASETS[name]), "CLASSES", ())
    classes = dict.fromkeys(("seg_coco", "obj_detection"), names)
    return (source[i] for i in range(0, len(source), stride)[:num]), classes


def from_files(
    paths: Sequence[pathlib.Path], folder: pathlib.Path, experts: Sequence[str], num: int
) -> Iterator[dict[str, Any]]:
    """One example a photo, with the labels that `labels.locate` finds under the photo's name or relative path."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of labels.")
    found: list[tuple[pathlib.Path, pathlib.Path]] = []  # photo, and the folder that its labels' paths are relative to
    for path in paths:
        if path.is_dir():
            found += [(file, path) for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]
        elif path.exists():
            found.append((path, path.parent))
        else:
            raise UserError(f"{path}: no such photo or folder.")
    if not found:
        raise UserError(f"{paths[0]}: no photos with the endings {', '.join(sorted(SUFFIXES))}.")
    for path, root in found[:num]:
        relative = path.relative_to(root)
        yield {"id": str(relative), "image": str(path), **labels.locate(folder, experts, relative)}


def sample(example: dict[str, Any], experts: Sequence[str], names: dict[str, Sequence[str]]) -> dict[str, Any]:
    """An example as `report.panel` draws it; labels keep their own size."""
    present = [name for name in experts if f"labels/{name}" in example]
    decoded = build("decode")(example, np.random.default_rng(0))
    texts = decoded.get("captions") or decoded.get("answers") or []
    return {
        "image": decoded["image"],
        "labels": {name: decoded[f"labels/{name}"] for name in present},
        "classes": names,
        "instances": decoded.get(labels.CLASSES_KEY),
        "words": decoded.get("words", ()),
        "prediction": str(decoded.get("id", "")),
        "question": decoded.get("question"),
        "references": texts,
    }


if __name__ == "__main__":
    run_main(main)
