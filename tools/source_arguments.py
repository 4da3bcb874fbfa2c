"""The flags by which every tool names its photos, and the source that they mean."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from prismer_jax import datasets
from prismer_jax.errors import UserError

KINDS = ("list", "images", "tars", "dataset_dir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --list, --images, --annotations, --tars, --dataset-dir, --labels, --limit, --max-missing, --source-name."""
    group = parser.add_argument_group("photos", "one of --list (with --images), --images, --tars, --dataset-dir")
    add = group.add_argument
    add("--list", type=pathlib.Path, help="list of photos with captions or questions, of a format in docs/data.md")
    add("--annotations", type=pathlib.Path, help="VQAv2's file of answers to the questions of --list")
    add("--images", type=pathlib.Path, help="folder of photos, searched recursively; or that a list's paths are below")
    add(
        "--tars",
        help="tar shards as img2dataset writes them: a folder, or a pattern such as 'cc12m/{00000..01242}.tar'",
    )
    add("--dataset-dir", help="finished data set, made by python -m tools.build_dataset")
    add("--labels", type=pathlib.Path, help="folder of label files: DIR/<expert>/<photo>.png")
    add("--limit", type=int, help="only the first N photos")
    add("--max-missing", type=float, default=1.0, help="fraction of photos that may be missing; default 1: any")
    add("--source-name", help="what the data set is called; default: the name of the list, folder or shards")


def open_source(args: argparse.Namespace) -> Any:
    """The source of task 'all' (one item a photo, see datasets/lists.py) that the flags name.

    Raises:
      UserError: none or several of the kinds are given, a flag does not go with the kind, or the source cannot be read.
    """
    kinds = [kind for kind in KINDS if getattr(args, kind) is not None and (kind != "images" or args.list is None)]
    if len(kinds) != 1:
        raise UserError("Give one of --list (with --images), --images, --tars or --dataset-dir.")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1.")
    if args.annotations is not None and args.list is None:
        raise UserError("--annotations are the answers to the questions of --list, which is not given.")
    common = {"task": "all", "limit": args.limit}
    match kinds[0]:
        case "dataset_dir":
            if args.labels is not None:
                raise UserError("--labels: a finished data set has its labels inside.")
            return datasets.load("records", path=args.dataset_dir, **common)
        case "tars":
            return datasets.load("tars", path=args.tars, labels=args.labels, source=args.source_name, **common)
        case _:
            return datasets.load(
                "lists",
                path=args.list,
                images=args.images,
                annotations=args.annotations,
                labels=args.labels,
                source=args.source_name,
                max_missing=args.max_missing,
                **common,
            )
