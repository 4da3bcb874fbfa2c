"""Measures speed: python -m tools.bench [NAME ...] [--config FILE[:arg]] [--seconds 10]

    scenes   scenes rendered, labelled and encoded a second, on one core
    loader   examples a second that the config's loader gives when nothing else runs
    step     images a second of the config's training step, fed from memory
    decode   captions a second, greedily and with beams
    experts  photos of 480x480 a second that each expert's network labels, and peak memory; only where it is asked for:
             python -m tools.bench experts [--experts depth edge ...] [--batch-size 4] [--dtype float32]
             [--reference CHECKOUT --reference-python PYTHON], a checkout of NVlabs/prismer to be compared with
    loader   with --reference: our loader beside the official Dataset, at 480 px with six labels, on one core; python -m
             tools.bench loader --reference CHECKOUT --reference-python PYTHON --list FILE --images DIR --labels DIR, or
             other flags that name photos (by default 64 rendered scenes)
    nanovlm  nanoVLM of the 222M size, beside the original's code: answers, training, photos, packing, memory; python -m
             tools.bench nanovlm [--rows answers_head ...] [--reference CLONE --reference-python PYTHON], a clone of
             huggingface/nanoVLM
    paligemma  PaliGemma with four layers of Gemma, beside transformers: decoding, training, memory; python -m
             tools.bench paligemma [--rows decode] [--reference-python PYTHON], one that has PyTorch and transformers
    blip2    BLIP-2 with a ViT of 12 blocks and OPT-350M, beside transformers: captions, stage 2, memory; python -m
             tools.bench blip2 [--rows captions] [--reference-python PYTHON]
    prismer  PrismerBASE at 480 px with six experts, beside the official code: encoder, captions, answers, training;
             python -m tools.bench prismer [--rows encoder ...] [--reference CHECKOUT --reference-python PYTHON], a
             checkout of NVlabs/prismer and a Python that has PyTorch, transformers 4.26.1 and einops
    loader/step   how many times faster the loader is than what it feeds

All in one run, one after the other, so that ratios hold on a noisy machine. One line each, with the machine below.
`--only NAME ...` says the same as the names alone. `--json FILE` leaves the table of prismer, paligemma or blip2 there.
"""

from __future__ import annotations

import os
import platform
import sys

import jax

from prismer_jax import config, runtime
from prismer_jax.datasets import flags, scenes
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage

from . import blip2, experts, loader, nanovlm, paligemma, prismer
from .run import BENCHES, Bench

BESIDE = {"prismer": prismer, "paligemma": paligemma, "blip2": blip2}  # the official code, and transformers
ALONE = ("experts", "nanovlm", *BESIDE)


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}, {', '.join(ALONE)}; default: the first four"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="the same as names alone")
    parser.add_argument("--config", default="configs/quickstart.py", help="FILE.py or FILE.py:arg")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each is measured")
    parser.add_argument(
        "--experts", nargs="+", default=list(experts.NETWORKS), help="such as depth edge student; default: all"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="of the experts")
    parser.add_argument("--dtype", default="float32", help="of the experts: float32 or bfloat16")
    parser.add_argument(
        "--reference",
        type=storage.on_disk,
        help="clone of NVlabs/prismer or nanoVLM, to compare with",
    )
    parser.add_argument("--reference-python", type=storage.on_disk, help="that has PyTorch (default: this one)")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        help=f"of nanovlm: {', '.join(nanovlm.ROWS)}, packing; of {', '.join(BESIDE)}: "
        + ", ".join(row for module in BESIDE.values() for row in module.ROWS),
    )
    tables = ", ".join(BESIDE)
    parser.add_argument("--one-core", action="store_true", help=f"of nanovlm, {tables}: the time of one core")
    parser.add_argument("--json", type=storage.on_disk, help=f"file for the table of {tables}")
    flags.add_arguments(parser)
    args, overrides = parser.parse(argv)
    names = args.names + args.only or list(BENCHES)
    benches = [choose("benchmark", name, BENCHES | dict.fromkeys(ALONE)) for name in names]
    if args.json is not None and (len(names) > 1 or names[0] not in BESIDE):
        raise UserError(f"--json goes with one of {', '.join(BESIDE)}.")
    runtime.use_compilation_cache()
    python = args.reference_python or sys.executable
    if names == ["experts"]:
        networks = [name for name in args.experts if choose("expert", name, experts.NETWORKS)]
        settings = dict(batch=args.batch_size, dtype=args.dtype, seconds=args.seconds)
        experts.measure(networks, args.reference, python, **settings)
        print(_machine())
        return
    if names == ["nanovlm"]:
        rows = [name for name in args.rows if choose("row", name, nanovlm.ROWS | {"packing": None}) or True]
        nanovlm.measure(args.reference, python, seconds=args.seconds, rows=rows, alone=args.one_core)
        print(_machine())
        return
    if len(names) == 1 and names[0] in BESIDE:
        module = BESIDE[names[0]]
        rows = [name for name in args.rows if choose("row", name, module.ROWS)]
        theirs = (args.reference, python) if module is prismer else (args.reference_python,)
        table = module.measure(*theirs, seconds=args.seconds, rows=rows, alone=args.one_core)
        if args.json is not None:
            storage.write_json(args.json, table)
        print(_machine())
        return
    if names == ["loader"] and args.reference is not None:
        named = any(getattr(args, kind) is not None for kind in flags.KINDS)
        source = flags.open_source(args) if named else scenes.load(task="all", size=480, count=64)
        loader.measure(source, args.reference, python, seconds=args.seconds)
        print(_machine())
        return
    if alone := [name for name in names if name in ALONE]:
        raise UserError(f"{alone[0]!r} goes alone: what else is measured would be in memory beside it.")
    bench = Bench(config.load(args.config, overrides), args.seconds)
    results: dict[str, float] = {}
    with jax.set_mesh(bench.mesh):
        for measure in benches:
            for name, value in measure(bench).items():
                print(f"{name:<36}{value:10.1f}", flush=True)
                results[name] = value
    if "loader, examples a second" in results and "training step, images a second" in results:
        ratio = results["loader, examples a second"] / results["training step, images a second"]
        print(f"{'loader / step':<36}{ratio:10.1f}")
    print(_machine())


def _machine() -> str:
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return f"{devices}, {os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}"


if __name__ == "__main__":
    run_main(main)
