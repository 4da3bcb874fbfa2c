"""Draws photos with their label maps, and what the labels of a whole data set hold:

    python -m tools.visualize --images DIR --labels DIR --output sheet.png
    python -m tools.visualize --dataset-dir DIR --output sheet.png          # or --list, --tars, --dataset scenes

writes a sheet of samples, evenly spaced, and beside it sheet-statistics.png; prints the statistics as a table and,
below it, what looks like an expert that did not work. Look before you train: see docs/data.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prismer_jax import config, datasets, label_png, labels
from prismer_jax.datasets import flags
from prismer_jax.errors import BadSample, UserError, run_main
from prismer_jax.files import progress, storage, workers
from prismer_jax.files.dropped import Dropped
from prismer_jax.objects.class_names import class_names
from prismer_jax.report import draw, overview, photos, statistics

ByExpert = dict[str, statistics.Statistics]
CHUNK = 16  # photos that a worker counts at a time


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the sheet and the statistics."""
    parser = config.ArgumentParser(
        prog="python -m tools.visualize",
        description="Draws photos with their label maps, and statistics of the labels.",
    )
    flags.add_arguments(parser)
    parser.add_argument("--dataset", help="a data set instead of photos: scenes (its --split)")
    parser.add_argument("--num", type=int, default=12, help="panels on the sheet, default 12; 0 draws none")
    parser.add_argument("--num-statistics", type=int, default=2000, help="photos counted, default 2000; -1: all")
    parser.add_argument("--experts", help="such as depth+edge; default: all that have labels")
    parser.add_argument("--describe", action="store_true", help="also what the op `describe` says of the labels")
    parser.add_argument("--columns", type=int, default=2)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that count; default: one a core")
    parser.add_argument("--output", type=storage.plain, default="labels.png", help="the sheet, local or remote")
    args = parser.parse_args(argv)
    if args.num < 0 or args.num_statistics < -1 or args.processes < 1 or args.columns < 1:
        raise UserError("--num and --num-statistics count photos, --columns and --processes are at least 1.")
    if not (args.num or args.num_statistics):
        raise UserError("--num 0 --num-statistics 0: nothing is left to draw.")
    experts = tuple(labels.EXPERTS) if args.experts is None else labels.select(args.experts)
    source, names = open_source(args)
    if args.num:
        panels = draw_panels(source, experts, names, args.num, args.describe)
        photos.save(draw.contact(panels, args.columns), args.output)
        print(f"{args.output}: {len(panels)} panels")
    if args.num_statistics:
        by_expert, dropped = count(source, experts, args.num_statistics, args.processes)
        if args.experts is None:  # what no photo has a label of was not meant to be there
            by_expert = {name: one for name, one in by_expert.items() if one.present}
        warnings = [line for name, one in by_expert.items() for line in statistics.warnings(one, names.get(name, ()))]
        show(by_expert, names, warnings, dropped)
        if by_expert:
            path = f"{os.path.splitext(args.output)[0]}-statistics.png"
            storage.write(path, overview.picture(by_expert, names, warnings, _title(args)))
            print(f"{path}: of {next(iter(by_expert.values())).photos} photos")


def open_source(args: argparse.Namespace) -> tuple[Any, dict[str, Sequence[str]]]:
    """Returns the source of task 'all', and the names of its classes by expert."""
    if args.dataset is None:
        return flags.open_source(args), {name: class_names(name) for name in labels.EXPERTS}
    others = (*flags.KINDS, "annotations", "labels", "limit", "source_name")
    if given := [name for name in others if getattr(args, name) is not None]:
        flag = given[0].replace("_", "-")
        raise UserError(f"--dataset is a source of its own: leave out --{flag} and all that names photos.")
    source = datasets.load(args.dataset, split=args.split or "train", task="all")
    own = getattr(importlib.import_module(datasets.DATASETS[args.dataset]), "CLASSES", ())
    return source, dict.fromkeys(("seg_coco", "obj_detection"), own)


def spaced(length: int, count: int) -> list[int]:
    """Returns so many indices, or all, evenly spaced."""
    count = length if count < 0 else min(count, length)
    return [i * length // count for i in range(count)]


# ---------------------------------------------------------------- the sheet


def draw_panels(
    source: Any, experts: Sequence[str], names: dict[str, Sequence[str]], num: int, described: bool = False
) -> list[Any]:
    """Returns panels of evenly spaced samples; what cannot be used is left out.

    Args:
      described: with what the op `describe` says of their labels.

    Raises:
      UserError: none of the samples can be used.
    """
    panels, last = [], None
    for index in spaced(len(source), num):
        try:
            panels.append(draw.panel(photos.sample(source[index], experts, names, described), photos.PHOTO))
        except BadSample as error:
            last = error
    if not panels:
        raise UserError(f"Not one of {min(num, len(source))} samples can be drawn. The last: {last}")
    return panels


# ---------------------------------------------------------------- the statistics


def count(source: Any, experts: Sequence[str], num: int, processes: int) -> tuple[ByExpert, Dropped]:
    """Returns statistics by expert of so many photos (-1: all), evenly spaced, and what could not be used."""
    indices = spaced(len(source), num)
    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    by_expert, dropped = {name: statistics.Statistics(name) for name in experts}, Dropped()
    with (
        workers.ordered_map(functools.partial(count_part, source, experts), chunks, processes) as results,
        progress.bar("Looking at labels", len(indices)) as advance,
    ):
        for chunk, (part, left_out) in zip(chunks, results, strict=True):
            for name, one in part.items():
                by_expert[name].update(one)
            dropped.update(left_out)
            advance(len(chunk))
    return by_expert, dropped


def count_part(source: Any, experts: Sequence[str], indices: Sequence[int]) -> tuple[ByExpert, Dropped]:
    """Counts in one process: returns the statistics of these photos and what could not be used."""
    by_expert, dropped = {name: statistics.Statistics(name) for name in experts}, Dropped()
    for index in indices:
        try:
            example = source[index]
        except BadSample as error:
            dropped.add_error(error)
            continue
        for name, one in by_expert.items():
            try:
                one.add(_label(example, name), example)
            except BadSample as error:
                dropped.add_error(error)
    return by_expert, dropped


def _label(example: dict[str, Any], expert: str) -> np.ndarray | None:
    """Returns the map, or None where there is none; one pixel stands for the empty map of zero bytes."""
    value = example.get(f"labels/{expert}")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = pathlib.Path(value).read_bytes()
        except OSError as error:
            raise BadSample(f"{value}: {error.strerror}.", "label cannot be read") from None
    where = f"labels/{expert} of example {example.get('id', '?')}"
    label = value if isinstance(value, np.ndarray) else label_png.decode(expert, value, where)
    return labels.blank(expert, 1, 1) if label is None else label


def show(by_expert: ByExpert, names: dict[str, Sequence[str]], warnings: Sequence[str], dropped: Dropped) -> None:
    """Prints the table, what could not be used, and the warnings."""
    console = Console(highlight=False, markup=False, emoji=False)  # names are printed as they are
    if not console.is_terminal:
        console.width = 160  # where a file or a pipe is written to, a narrow table would be cut
    if by_expert:
        head, *rows = overview.table(by_expert, names)
        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, title in enumerate(head):
            table.add_column(title, justify="left" if number in (0, len(head) - 1) else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        console.print("No photo has labels.")
    for line in dropped.lines():
        console.print(f"left out: {line}", soft_wrap=True)
    for line in warnings:
        console.print(Text.assemble(("!", "bold red"), f" {line}"), soft_wrap=True)
    if by_expert and not warnings:
        console.print("Nothing looks like a bad expert run.")


def _title(args: argparse.Namespace) -> str:
    given = args.dataset or args.dataset_dir or args.tars or args.parquet or args.list or args.images
    given = given[0] if isinstance(given, list) and given else given
    return pathlib.PurePath(str(given)).name or str(given)


if __name__ == "__main__":
    run_main(main)
