"""Labels photos with experts: python -m tools.make_labels --images DIR --output DIR --experts depth,normal,edge
--checkpoints DIR

Run it again after a stop: it goes on where it was. Run it several times at once, on one or many hosts with a common
file system: the processes share the work. A photo that cannot be labelled is a line on stderr and in skipped.json, and
the exit status is 1. docs/experts.md says more.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from prismer_jax import config, label_files, labels, runtime, sharding
from prismer_jax.datasets import flags
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.experts import EXPERTS, Expert, Student, weights
from prismer_jax.files import leases, storage
from prismer_jax.labelling import pipeline
from prismer_jax.labelling.estimate import estimate
from prismer_jax.labelling.job import Job, Stage, finish, settings
from prismer_jax.labelling.ledger import Ledger, past_speeds
from prismer_jax.labelling.output_formats import Dataset, Files, Output, check_folder
from prismer_jax.labelling.stage import Labelling

Loads = dict[str, Callable[[], Any]]  # the weights of each expert

WORK = ".make_labels"  # what processes know in common
SKIPPED = "skipped.json"
# The flags that say what a data set is made from.
SOURCE = ("list", "images", "annotations", "split", "tars", "parquet", "dataset_dir", "labels", "limit", "source_name")
RANDOM = "random weights"
DTYPES = ("float32", "bfloat16")
SAMPLE = 1000  # photos that are asked for labels that should be there
THREADS = max(pipeline.THREADS, (os.cpu_count() or 1) // 2)


def choose_experts(spec: str) -> list[Callable[..., Expert]]:
    """Returns the experts of 'depth,edge' or 'all', each after those it needs; of 'student:depth,edge' one's."""
    name, _, only = spec.partition(":")
    if "none" in (spec, only):
        raise UserError(f"--experts {spec}: names no expert, so that nothing would be labelled.")
    if name == Student.name:
        return [functools.partial(Student, only=labels.select(only or None))]
    if Student.name in spec.replace("+", ",").split(","):
        raise UserError(
            f"--experts {spec}: a student labels alone, as student or student:depth,edge; run it by itself."
        )
    names = labels.select(spec)
    for name in names:
        choose("expert", name, EXPERTS)
    return [expert for name, expert in EXPERTS.items() if name in names]


def check_needs(job: Job, chosen: Sequence[Expert], folder: str) -> None:
    """Raises a UserError where labels that an expert needs are neither there nor going to be, by a sample of photos."""
    sample = range(0, len(job.source), max(1, len(job.source) // SAMPLE))
    for expert in chosen:
        for name in set(expert.needs) - {expert.name for expert in chosen}:
            if not any(job.has(name, index) for index in sample):
                raise UserError(f"{expert.name} needs labels of {name}, which {folder} lacks: add {name} to --experts.")


def report(job: Job, experts: Sequence[str], folder: str) -> int:
    """Writes the list of what was skipped, by whatever process; returns of how many photos it is."""
    counts, rows = job.skipped(experts)
    path = storage.join(folder, SKIPPED)
    storage.write_json(path, {"reasons": counts.to_json(), "photos": rows})
    if count := len({row["image"] for row in rows}):
        print(f"{count} photos were skipped, wholly or by an expert: see {path}", file=sys.stderr)
        print(*(f"  {line}" for line in counts.lines()), sep="\n", file=sys.stderr)
    return count


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = config.ArgumentParser(prog="python -m tools.make_labels", description=__doc__)
    flags.add_arguments(parser)
    parser.add_argument("--output", type=storage.on_disk, help="folder for label files, as NVlabs/prismer has them")
    parser.add_argument(
        "--output-dataset",
        type=storage.plain,
        help="or for a data set of records, local or gs://...",
    )
    parser.add_argument("--work", type=storage.on_disk, help=f"a folder that all processes share; default {WORK} there")
    parser.add_argument("--experts", default="all", help="such as depth,edge, or student; default: all of the paper's")
    parser.add_argument("--checkpoints", type=storage.on_disk, help="folder of tools.download's, tools.convert's files")
    parser.add_argument("--random-weights", action="store_true", help="meaningless labels, for tests and timing")
    parser.add_argument("--empty-labels", action="store_true", help="what cannot be labelled gets an empty label")
    parser.add_argument("--official", action="store_true", help="words as .pt too, which NVlabs/prismer reads")
    parser.add_argument("--recheck", action="store_true", help="make also labels that were lost or cut since")
    parser.add_argument("--dry-run", action="store_true", help="only say how many labels, bytes and hours")
    parser.add_argument("--batch-size", type=int, default=4, help="photos at a time; default 4")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type that the networks compute in")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"for reading, and for writing; here {THREADS}")
    parser.add_argument("--shard-size", type=int, default=256, help="photos a process takes at a time; default 256")
    parser.add_argument(
        "--expiry",
        type=float,
        default=leases.EXPIRY,
        help=f"seconds until a silent process is dead; default {leases.EXPIRY:.0f}",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="in one job of jax.distributed, as on a pod",
    )
    args = parser.parse_flags(argv, "nothing here has a config")
    if min(args.batch_size, args.threads, args.shard_size) < 1 or args.expiry <= 0:
        raise UserError("--batch-size, --threads, --shard-size and --expiry must be at least 1.")
    if (args.checkpoints is None) != args.random_weights:
        raise UserError("Give either --checkpoints DIR, a folder of the experts' weights, or --random-weights.")
    if (args.output is None) == (args.output_dataset is None):
        raise UserError("Give either --output DIR, for label files, or --output-dataset DIR, for a data set.")
    if args.output is not None:
        check_folder(args.output)
    if args.official and args.output is None:
        raise UserError("--official is about label files, which the official code reads: give --output.")
    output = args.output or args.output_dataset
    if args.work is None and storage.is_remote(output):
        raise UserError(f"{output}: is remote, where processes cannot share work; give --work DIR on a common disk.")
    args.work = args.work or label_files.home(output) / WORK
    of_photos = pathlib.Path(args.images).resolve() if args.images and not args.list else None
    if of_photos and not storage.is_remote(output) and pathlib.Path(output).resolve().is_relative_to(of_photos):
        raise UserError(f"{output}: lies in the folder of the photos, whose label maps would be photos next time.")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    chosen = choose_experts(args.experts)
    runtime.log_warnings()
    source = flags.open_source(args)
    if not args.dry_run:
        args.work.mkdir(parents=True, exist_ok=True)
    runtime.use_compilation_cache()
    sharding.initialize_distributed(args.distributed or None)
    experts = [kind(dtype=args.dtype) for kind in chosen]
    loads = {expert.name: opened(expert, args) for expert in experts}  # all before the first works for hours
    if args.random_weights:
        print("WARNING: random weights: these labels mean nothing. They are for tests and timing.", file=sys.stderr)
    if args.dry_run:
        foretell(args, experts, loads, source)
        return
    job = settings(source, args.shard_size)
    output = args.output or args.output_dataset
    if args.work != label_files.home(output) / WORK:  # the folder could serve another output before
        job["output"] = str(output)

    def check() -> None:
        if args.output_dataset is not None:
            open_output(args, source, None, experts).check()

    with Ledger(args.work, job, args.expiry, args.recheck, check) as ledger:
        skipped = label(args, experts, loads, source, ledger)
    if args.random_weights:
        print("WARNING: these labels mean nothing: they were made with random weights.", file=sys.stderr)
    if skipped:
        sys.exit(1)


def opened(expert: Expert, args: argparse.Namespace) -> Callable[[], Any]:
    """Returns what gives the expert's weights; that they are there, and all else that it needs, is looked for now."""
    if args.random_weights:
        return expert.random_variables
    expert.open(weights.find(expert, args.checkpoints))
    return functools.partial(weights.load, expert, args.checkpoints)


def open_output(args: argparse.Namespace, source: Any, ledger: Ledger | None, experts: Sequence[Expert]) -> Output:
    """Returns where the flags say that labels go; without a ledger only to look at."""
    how = {expert.name: RANDOM if args.random_weights else expert.made_with for expert in experts}
    made_with = {kind: how[expert.name] for expert in experts for kind in expert.kinds}
    common = {"shard_size": args.shard_size, "empty": args.empty_labels}
    common["kinds"] = {expert.name: expert.kinds for expert in experts}
    if args.output is not None:
        # A tar's photos are called as the tar and the member, a table's as the table and the row: no two alike.
        common |= {"distinct": (args.tars or args.parquet) is not None, "official": args.official}
        return Files(args.output, source, ledger, made_with, **common)
    made_from = {name: str(value) for name in SOURCE if (value := getattr(args, name, None)) is not None}
    options = {"work": args.work, "made_from": made_from, "given": args.labels, "threads": args.threads}
    return Dataset(args.output_dataset, source, ledger, made_with, **options, **common)


def foretell(args: argparse.Namespace, experts: Sequence[Expert], loads: Loads, source: Any) -> None:
    """Says how much there is to do; writes nothing."""
    output = open_output(args, source, None, experts)
    options = {"batch_size": args.batch_size, "threads": args.threads, "speeds": past_speeds(args.work)}
    mesh, estimates = sharding.make_mesh(devices=jax.local_devices()), []
    for expert in experts:
        estimates.append(estimate(output.job, expert, loads[expert.name], mesh, **options))
        print(estimates[-1].line())
    missing, hours = sum(one.missing for one in estimates), sum(one.hours for one in estimates)
    gigabytes = sum(one.missing * (one.bytes or 0) for one in estimates) / 1e9
    print(
        f"in all: {len(source):,} photos in {len(output.job.shards):,} shards, {missing:,} labels to make, "
        f"{gigabytes:.3g} GB, {hours:.2g} hours of one process such as this; several share them"
    )


def label(args: argparse.Namespace, experts: Sequence[Expert], loads: Loads, source: Any, ledger: Ledger) -> int:
    """Does the job, or this process's share of it; returns how many photos were skipped."""
    names = [expert.name for expert in experts]
    output = open_output(args, source, ledger, experts)
    check_needs(output.job, experts, output.folder)
    output.claim()
    mesh = sharding.make_mesh(devices=jax.local_devices())
    stages: list[Stage] = [
        Labelling(
            output.job,
            expert,
            loads[expert.name],
            mesh,
            batch_size=args.batch_size,
            threads=args.threads,
            after=[name for name in expert.needs if name in names],
        )
        for expert in experts
    ]
    hint = "; --recheck looks at their labels again" if args.output else ""  # shards of data sets are looked at anyway
    for stage in stages:
        if stage.done():
            print(f"{stage.name}: all {len(source)} photos were done before{hint}")
    try:
        finish([*stages, *output.stages()], min(leases.POLL, args.expiry / leases.BEATS))
        ledger.check()
        output.finish()
    finally:
        with ledger.leases.wait("report"):
            skipped = report(output.job, names, output.folder)
    return skipped


if __name__ == "__main__":
    run_main(main)
