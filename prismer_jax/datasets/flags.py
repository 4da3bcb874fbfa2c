"""The flags by which every tool names its photos, and the source that they mean."""

from __future__ import annotations

import argparse
from typing import Any

from prismer_jax import datasets, runtime
from prismer_jax.errors import UserError
from prismer_jax.files import storage

KINDS = ("list", "images", "tars", "parquet", "dataset_dir")
MISSING = 1.0  # of photos from the web up to a third are gone; tools count them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a tool that works on photos."""
    group = parser.add_argument_group(
        "photos", "one of --list (with --images), --images, --tars, --parquet, --dataset-dir"
    )
    add, path = group.add_argument, storage.on_disk
    add("--list", nargs="+", type=path, metavar="FILE", help="lists of photos, of a layout in docs/data.md")
    add("--annotations", nargs="+", type=path, metavar="FILE", help="VQAv2's files of answers, one for each --list")
    add("--split", help="part of a --list that has several, as Karpathy's")
    add("--images", type=path, metavar="DIR", help="folder of photos: a --list's, or all are taken")
    add(
        "--tars",
        nargs="+",
        type=lambda text: str(path(text)),
        metavar="PATH",
        help="img2dataset's: a folder, or 'DIR/{000..124}.tar'",
    )
    add("--parquet", nargs="+", type=storage.plain, metavar="PATH", help="files with the photos inside, or hf://...")
    add("--dataset-dir", type=storage.plain, metavar="DIR", help="what tools.build_dataset made, or where, remote")
    add("--labels", type=path, metavar="DIR", help="folder of labels: DIR/<expert>/<photo>.png")
    add("--limit", type=int, help="only the first N photos")
    add("--max-missing", type=float, default=MISSING, help="fraction of photos that may be missing; default 1")
    add("--source-name", help="name of the data set; default: the list's")


def open_source(args: argparse.Namespace) -> Any:
    """Opens the photos that the flags name, as a source of task 'all': one item a photo, see datasets/lists/.

    Raises:
      UserError: none or several of the kinds are given, a flag does not go with the kind, or the source cannot be read.
    """
    kinds = [kind for kind in KINDS if getattr(args, kind) is not None and (kind != "images" or args.list is None)]
    if len(kinds) != 1:
        raise UserError("Give one of --list (with --images), --images, --tars, --parquet or --dataset-dir.")
    kind = kinds[0]
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1.")
    if not 0 <= args.max_missing <= 1:
        raise UserError(f"--max-missing {args.max_missing}: a fraction, from 0 to 1.")
    if kind != "list" and (args.annotations is not None or args.split is not None):
        raise UserError("--annotations and --split belong to a --list, which is not given.")
    if kind == "dataset_dir" and (args.labels is not None or args.source_name is not None):
        raise UserError("A finished data set has its labels and its source inside: leave --labels and --source-name.")
    if kind == "dataset_dir":
        return datasets.load("records", path=args.dataset_dir, task="all", limit=args.limit)
    shared = dict(labels=args.labels, task="all", source=args.source_name, limit=args.limit)
    match kind:
        case "parquet":
            return datasets.load("parquet", path=args.parquet, **shared)
        case "tars":
            return datasets.load("tars", path=args.tars, processes=runtime.cores(), **shared)
        case _:
            own = dict(annotations=args.annotations, split=args.split, max_missing=args.max_missing)
            return datasets.load("lists", path=args.list, images=args.images, **own, **shared)
