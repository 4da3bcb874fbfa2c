"""Labels photos with experts: python -m tools.make_labels --images DIR --output DIR --experts depth,normal,edge
--checkpoints DIR

Photos may be of any kind and size, mixed: a folder, a list, tar shards, or a finished data set. --output takes label
files as in the official repository, DIR/<expert>/<photo>.png with .json or .npz beside it for detection and words;
--output-dataset takes a data set of ArrayRecord shards: photos, texts and labels.

Run it again after a stop: what is there is kept. Run it several times at once, on one or many hosts with a common file
system: the processes share the work, and what one leaves behind that dies, the others do. A photo that cannot be
labelled is one line on stderr and one entry in skipped.json, and the exit status is 1.

--checkpoints is a folder of official files (python -m tools.download experts), of folders that python -m tools.convert
expert wrote and that are called as the expert, or of both.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from prismer_jax import config, labels, leases, runtime, sharding
from prismer_jax.errors import BadSample, UserError, choose, run_main
from prismer_jax.experts import EXPERTS, Expert, pipeline, weights
from prismer_jax.experts.job import Job, finish, split
from prismer_jax.experts.labelling import Labelling
from prismer_jax.experts.ledger import Ledger
from prismer_jax.experts.stores import LabelFiles
from tools import source_arguments

WORK = ".make_labels"  # what processes know in common
RECORD = "make_labels.json"  # which weights made the labels of each expert
SKIPPED = "skipped.json"
TRAINED, RANDOM = "trained weights", "random weights"
DTYPES = ("float32", "bfloat16")
SAMPLE = 1000  # photos that are asked for labels that should be there
THREADS = max(pipeline.THREADS, (os.cpu_count() or 1) // 2)


def choose_experts(spec: str) -> list[type[Expert]]:
    """The experts of 'depth,edge' or 'all', each after those that it needs."""
    names = labels.select(spec.replace(",", "+"))
    for name in names:
        choose("expert", name, EXPERTS)
    return [expert for name, expert in EXPERTS.items() if name in names]


def claim(ledger: Ledger, output: pathlib.Path, made_with: dict[str, str]) -> None:
    """Notes which weights make the labels of each expert, so that they are never mixed with others' by accident."""
    path = output / RECORD

    def claimed(_: str) -> bool:
        record = json.loads(path.read_text()) if path.exists() else {}
        for expert, weights_ in made_with.items():
            if record.get(expert, weights_) != weights_:
                raise UserError(
                    f"{output}: holds labels of {expert} made with {record[expert]}, not with {weights_}. Choose "
                    f"another output, or delete {output / expert} and {path}."
                )
        return made_with.items() <= record.items()

    for lease in ledger.leases.share(["record"], claimed):
        with lease:
            record = json.loads(path.read_text()) if path.exists() else {}
            config.write(path, json.dumps(record | made_with, indent=2))


def names_of(source: Any) -> list[str]:
    """The names of all photos; empty for one that cannot be used."""

    def name(index: int) -> str:
        try:
            return source[index]["name"]
        except BadSample:
            return ""

    return [name(index) for index in range(len(source))]


def check_needs(job: Job, chosen: Sequence[type[Expert]], output: pathlib.Path) -> None:
    """Raises a UserError where labels that an expert needs are neither there nor going to be, by a sample of photos."""
    sample = range(0, len(job.source), max(1, len(job.source) // SAMPLE))
    for expert in chosen:
        for name in set(expert.needs) - {expert.name for expert in chosen}:
            if not any(job.has(name, index) for index in sample):
                raise UserError(f"{expert.name} needs labels of {name}, which {output} lacks: add {name} to --experts.")


def report(job: Job, experts: Sequence[str], output: pathlib.Path) -> int:
    """Writes the list of what was skipped, by whatever process; returns of how many photos it is."""
    counts, rows = job.skipped(experts)
    config.write(output / SKIPPED, json.dumps({"reasons": counts.to_json(), "photos": rows}, indent=2))
    if count := len({row["image"] for row in rows}):
        print(f"{count} photos were skipped, wholly or by an expert: see {output / SKIPPED}", file=sys.stderr)
        print(*(f"  {line}" for line in counts.lines()), sep="\n", file=sys.stderr)
    return count


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = config.ArgumentParser(
        prog="python -m tools.make_labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source_arguments.add_arguments(parser)
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for the labels")
    parser.add_argument("--experts", default="all", help=f"of {','.join(EXPERTS)}; default all of the paper's")
    parser.add_argument("--checkpoints", type=pathlib.Path, help="folder of official files or converted folders")
    parser.add_argument("--random-weights", action="store_true", help="meaningless labels, for tests and timing")
    parser.add_argument("--empty-labels", action="store_true", help="what cannot be labelled gets an empty label")
    parser.add_argument("--batch-size", type=int, default=4, help="photos at a time; default 4")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="that the networks compute in")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"for reading, and for writing; here {THREADS}")
    parser.add_argument(
        "--shard-size", type=int, default=256, help="photos that a process takes at a time; default 256"
    )
    parser.add_argument(
        "--expiry",
        type=float,
        default=leases.EXPIRY,
        help=f"seconds without a sign of life after which a process counts as dead; default {leases.EXPIRY:.0f}",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="the processes are those of one jax.distributed job; default: if $JAX_COORDINATOR_ADDRESS is set",
    )
    args, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"Unknown argument --config.{overrides[0]}: nothing here has a config.")
    if min(args.batch_size, args.threads, args.shard_size) < 1 or args.expiry <= 0:
        raise UserError("--batch-size, --threads, --shard-size and --expiry must be at least 1.")
    if (args.checkpoints is None) != args.random_weights:
        raise UserError("Give either --checkpoints DIR, a folder of the experts' weights, or --random-weights.")
    if args.images is not None and args.list is None and args.output.resolve().is_relative_to(args.images.resolve()):
        raise UserError(f"{args.output}: lies in the folder of the photos, whose label maps would be photos next time.")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    chosen = choose_experts(args.experts)
    runtime.log_warnings()
    source = source_arguments.open_source(args)
    args.output.mkdir(parents=True, exist_ok=True)
    runtime.use_compilation_cache()
    sharding.initialize_distributed(args.distributed or None)
    if args.random_weights:
        print("WARNING: random weights: these labels mean nothing. They are for tests and timing.", file=sys.stderr)
    with Ledger(args.output / WORK, {"photos": len(source), "shard_size": args.shard_size}, args.expiry) as ledger:
        skipped = label(args, chosen, source, ledger)
    if args.random_weights:
        print("WARNING: these labels mean nothing: they were made with random weights.", file=sys.stderr)
    if skipped:
        sys.exit(1)


def label(args: argparse.Namespace, chosen: Sequence[type[Expert]], source: Any, ledger: Ledger) -> int:
    """Does the job, or this process's share of it; returns how many photos were skipped."""
    shards = split(len(source), args.shard_size)
    job = Job(source, LabelFiles(args.output), ledger, shards, names=names_of(source), empty=args.empty_labels)
    check_needs(job, chosen, args.output)
    mesh, experts = sharding.make_mesh(devices=jax.local_devices()), [kind(dtype=args.dtype) for kind in chosen]
    names = [expert.name for expert in experts]
    stages = []
    for expert in experts:
        load = expert.random_variables
        if not args.random_weights:
            expert.open(weights.find(expert, args.checkpoints))  # all before the first works for hours
            load = functools.partial(weights.load, expert, args.checkpoints)
        after = [name for name in expert.needs if name in names]
        options = {"batch_size": args.batch_size, "threads": args.threads, "after": after}
        stages.append(Labelling(job, expert, load, mesh, **options))
    claim(ledger, args.output, dict.fromkeys(names, RANDOM if args.random_weights else TRAINED))
    try:
        finish(stages, min(leases.POLL, args.expiry / leases.BEATS))
    finally:
        skipped = report(job, names, args.output)
    return skipped


if __name__ == "__main__":
    run_main(main)
