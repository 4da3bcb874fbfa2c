"""Builds a data set: python -m tools.build_dataset --list FILE --images DIR --labels DIR --output DIR

Run it again after a stop, or several times at once, on one host or many: each shard is made once, whole or not at all,
and what is there is kept. What follows --beam is given to Apache Beam, which makes the shards then: ... --beam --runner
FlinkRunner --flink_master host:8081. docs/data.md says more.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from prismer_jax import config, labels, runtime
from prismer_jax.datasets import data_seen, flags
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.shards import build, check, manifest, metadata

UNITS = {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
NOT_WHAT = ("output", "processes", "dry_run", "check", "max_side", "experts", "tfds_name", "tfds_split")


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    beam = argv[argv.index("--beam") + 1 :] if "--beam" in argv else None
    args = _parse(argv if beam is None else argv[: argv.index("--beam")])
    if args.check is not None:
        if not check.check(storage.plain(args.check), args.processes):
            sys.exit(1)
        return
    if args.output is None:
        raise UserError("Give --output DIR, the folder of the data set; or --check DIR.")
    source = flags.open_source(args)
    plan = _plan(source, args)
    if args.dry_run:
        _estimate(plan, source, args.processes)
        return
    started = time.monotonic()
    if beam is None:
        finished = build.build(plan, source, args.processes)
    else:
        from prismer_jax.shards import build_beam

        finished = build_beam.build(plan, functools.partial(flags.open_source, args), beam)
    _report(plan, finished, time.monotonic() - started)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = config.ArgumentParser(prog="python -m tools.build_dataset", description=__doc__)
    flags.add_arguments(parser)
    add = parser.add_argument
    add("--output", type=storage.plain, help="folder of the data set, local or gs://..., s3://...")
    add("--shard-size", default="1000", help="samples or bytes (500MB) a shard; default 1000")
    add("--max-side", type=int, help="pixels; larger photos are scaled down to it")
    add("--experts", help="such as depth,edge; default: those of --labels")
    add("--tfds-name", help="what TFDS calls the data set; default: the folder")
    add("--tfds-split", default="train", help="what TFDS calls the split; default train")
    add("--processes", type=int, default=runtime.cores(), help="worker processes; default one a core")
    add("--dry-run", action="store_true", help="only say how many records, bytes and hours")
    add("--check", type=storage.plain, metavar="DIR", help="verify a finished data set instead")
    args = parser.parse_flags(argv, "nothing here has a config")
    if args.processes < 1 or (args.max_side is not None and args.max_side < 32):
        raise UserError("--processes must be at least 1, --max-side at least 32.")
    return args


def _plan(source: Any, args: argparse.Namespace) -> build.Plan:
    folder = storage.plain(args.output)
    made_with = _labels(args, source)
    given = {key: value for key, value in vars(args).items() if value is not None and key not in NOT_WHAT}
    made_from = json.loads(json.dumps(given, default=str))
    made_from |= {"names": build.names(source), "data": data_seen.fingerprint(source)}
    made_from |= {"label_files": build.label_files_of(source, args.labels)}
    made_from |= {"dropped": getattr(source, "dropped", Dropped()).to_json()}
    return build.Plan(
        folder=folder,
        name=metadata.identifier(args.tfds_name or os.path.basename(folder.rstrip("/"))),
        split=args.tfds_split,
        experts=tuple(made_with),
        count=len(source),
        shard_size=_shard_size(args, source, tuple(made_with)),
        max_side=args.max_side,
        made_from=made_from,
        labels=made_with,
    )


def _labels(args: argparse.Namespace, source: Any) -> dict[str, Any]:
    """The experts whose labels are stored, those said or those that are there: {name: how they were made}."""
    there = build.labels_of(source, args.labels)
    if args.experts is None:
        if args.labels and not there:
            raise UserError(
                f"{args.labels}: has no folder of any expert ({', '.join(labels.EXPERTS)}). Check --labels."
            )
        return there
    return {name: there.get(name) for name in labels.select(args.experts)}


def _shard_size(args: argparse.Namespace, source: Any, experts: Sequence[str]) -> int:
    """In samples; bytes are turned into samples by the mean of some."""
    match = re.fullmatch(r"(\d+)\s*(KB|MB|GB)?", args.shard_size, re.IGNORECASE)
    if not match or not int(match[1]):
        raise UserError(f"--shard-size {args.shard_size}: a number of samples, such as 1000, or bytes, such as 500MB.")
    if match[2] is None:
        return int(match[1])
    before = build.claimed(storage.plain(args.output)) or {}
    if before.get("made_from", {}).get("shard_size") == args.shard_size:
        return before["shard_size"]  # as the first process worked it out
    sample = build.measure(source, experts, args.max_side)
    return max(1, int(int(match[1]) * UNITS[match[2].upper()] / max(1, sample.bytes)))


def _estimate(plan: build.Plan, source: Any, processes: int) -> None:
    sample = build.measure(source, plan.experts, plan.max_side)
    missing = plan.missing()
    left = sum(len(plan.samples(shard)) for shard in missing)
    hours = left * sample.seconds / processes / 3600
    print(f"{plan.count:,} samples in {plan.shards:,} shards, {plan.shards - len(missing):,} of which are there")
    print(f"{left * sample.bytes / 1e9:.3g} GB to write, {sample.bytes / 1000:.1f} kB a record")
    print(f"{hours:.2g} hours with {processes} processes, {1 / sample.seconds:.3g} records/s each")
    print(f"labels of: {', '.join(plan.experts) or 'no experts'}")
    for line in sample.dropped.lines():
        print(f"of {sample.count} samples looked at: {line}")


def _report(plan: build.Plan, finished: manifest.Manifest, seconds: float) -> None:
    totals = metadata.totals(finished)
    print(
        f"{plan.folder}: {totals['records']:,} records in {len(finished.shards):,} shards, {totals['captions']:,} "
        f"captions, {totals['questions']:,} questions, {totals['bytes'] / 1e9:.3g} GB; {seconds:.0f} s"
    )
    if plan.experts:
        print("labels: " + ", ".join(f"{name} {count:,}" for name, count in totals["labels"].items()))
    if dropped := metadata.dropped(finished):
        print(f"{dropped.total:,} were left out:")
        print("\n".join(dropped.lines()))


if __name__ == "__main__":
    run_main(main)
