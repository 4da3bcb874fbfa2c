"""Measures speed: python -m tools.bench [NAME ...] [--reference CHECKOUT --reference-python PYTHON] [--json FILE]

PrismerBASE whole, at 480 px with six experts, beside the official code: CHECKOUT is one of NVlabs/prismer, PYTHON has
PyTorch, transformers 4.26.1 and einops. Without them ours alone is measured:
    encoder  photos a second through the vision encoder
    caption  photos a second that beams of three describe; with --reference also without the encoder:
    decode   (without --reference: captions a second of the config's model, greedily and with beams)
    vqa_rank questions a second that are answered from 3,128 answers, of which 16 or 128 are scored whole
    train    photos a second of a fine-tuning step with freeze_vision
    memory   the peaks of encoder, caption and train; its ratio is the largest, and the others' is their least
    prismer  all of them, or --rows encoder ...
    limits   how near each of them comes to what its products and this machine allow; ours alone, or --rows encoder ...
    experts  photos of 480x480 a second that each expert's network labels, and peak memory
             [--experts depth edge ...] [--batch-size 4] [--dtype float32]
    loader   samples a second of one core at 480 px with six labels, of rendered scenes or of photos that flags name,
             such as --list FILE --images DIR --labels DIR (without --reference: examples a second of the config)
    build    records a second that one core writes
    startup  seconds from the start of the quickstart's process to its first step, cold and warm
Other families, whose --reference-python has PyTorch and transformers of today, or which --rows of them:
    nanovlm  nanoVLM of the 222M size; its --reference is a clone of huggingface/nanoVLM
    paligemma, blip2  beside transformers; with four layers of Gemma, with a ViT of 12 blocks and OPT-350M
             paligemma --big-vision: beside google-research/big_vision, whose Python has jax and flax
             blip2 --reference: beside a clone of salesforce/LAVIS, whose Python has transformers 4.33, or 4.26 for the
             code before 720f689
Parts of a config's run [--config FILE[:arg]], which are the default: scenes, loader, step, decode
    loader/step   how many times faster the loader is than what it feeds

All in one run, one after the other, so that ratios hold on a noisy machine. `--against CHECKOUT` is another checkout of
this project, which takes the place of the original in encoder ... memory, experts, loader, prismer, paligemma, blip2,
and starts in turn with this one in startup. What fails is said and does not keep the others from being measured; the
exit status is then 2. `--json FILE` leaves {"caption": {"ratio": ..., "rows": [...]}, ..., "machine": ...} there, with
{"error": ...} for what failed.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from prismer_jax import config, runtime
from prismer_jax.datasets import flags, scenes
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage

from . import big_vision, blip2, build, experts, lavis, limits, loader, nanovlm, paligemma, prismer, startup
from .run import BENCHES, Bench

Rows = list[dict[str, Any]]
OF_PRISMER = {
    "encoder": ["encoder"],
    "caption": ["caption"],
    "decode": ["decode"],
    "vqa_rank": ["vqa_rank16", "vqa_rank128"],
    "train": ["training"],
    "memory": ["encoder", "caption", "training"],
}
FAMILIES = {"prismer": prismer, "nanovlm": nanovlm, "paligemma": paligemma, "blip2": blip2}
ROWS = {name: list(module.ROWS) for name, module in FAMILIES.items()}
ROWS["nanovlm"].append("packing")  # a share, which takes no rounds


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    known = list(dict.fromkeys([*SUITES, *BENCHES]))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: {', '.join(BENCHES)}"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="the same as names alone")
    parser.add_argument("--config", default="configs/quickstart.py", help="FILE.py or FILE.py:arg")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each is measured")
    parser.add_argument(
        "--experts", nargs="+", default=list(experts.NETWORKS), help="such as depth edge student; default: all"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="of the experts")
    parser.add_argument("--dtype", default="float32", help="of the experts: float32 or bfloat16")
    parser.add_argument("--reference", type=storage.on_disk, help="clone of NVlabs/prismer, nanoVLM or LAVIS")
    parser.add_argument("--big-vision", type=storage.on_disk, help="clone of google-research/big_vision, for paligemma")
    python = "that has PyTorch, or flax (default: this one)"
    parser.add_argument("--reference-python", type=storage.on_disk, metavar="PYTHON", help=python)
    parser.add_argument("--against", type=storage.on_disk, help="another checkout of this project, to compare with")
    rows = "; ".join(f"of {name}: {', '.join(rows)}" for name, rows in ROWS.items())
    parser.add_argument("--rows", nargs="+", default=[], help=rows)
    parser.add_argument("--one-core", action="store_true", help="of all with a worker: the time of one core")
    parser.add_argument("--json", type=storage.on_disk, help="file for the results")
    flags.add_arguments(parser)
    args, overrides = parser.parse(argv)
    names = list(dict.fromkeys(args.names + args.only)) or list(BENCHES)
    for name in names:
        choose("benchmark", name, known)
    runtime.use_compilation_cache()
    beside = args.reference is not None or args.against is not None
    suites = {name: SUITES[name] for name in names if name in SUITES and (beside or name not in BENCHES)}
    results: dict[str, Any] = {}
    for name, suite in suites.items():
        results[name] = _result(name, functools.partial(suite, args))
    # These come last: their arrays are in the memory of this process.
    rest = [name for name in names if name not in suites]
    if rest:
        results |= _parts_of_a_run(rest, args, overrides)
    print(_machine())
    if args.json is not None:
        storage.write_json(args.json, results | {"machine": _machine()})
    if failed := [name for name, result in results.items() if "error" in result]:
        raise UserError(f"{', '.join(failed)} could not be measured: see above.")


def _result(name: str, suite: Callable[[], Rows]) -> dict[str, Any]:
    """Returns the rows of a suite and the ratio of the worst, or the error that it ended with, which is printed."""
    print(f"{name}:", flush=True)
    try:
        rows = suite()
    except (UserError, OSError) as error:
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
        return {"error": str(error)}
    ratios = [row["ratio_of_memory" if name == "memory" else "ratio"] for row in rows if "ratio" in row]
    return ({"ratio": max(ratios) if name == "memory" else min(ratios)} if ratios else {}) | {"rows": rows}


def _parts_of_a_run(names: Sequence[str], args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    bench = Bench(config.load(args.config, overrides), args.seconds)
    rates: dict[str, float] = {}
    results: dict[str, Any] = {}
    with jax.set_mesh(bench.mesh):
        for measure in names:
            results[measure] = {"rows": BENCHES[measure](bench)}
            for name, value in results[measure]["rows"].items():
                print(f"{name:<36}{value:10.1f}", flush=True)
                rates[name] = value
    if "loader, examples a second" in rates and "training step, images a second" in rates:
        ratio = rates["loader, examples a second"] / rates["training step, images a second"]
        print(f"{'loader / step':<36}{ratio:10.1f}")
    return results


def _python(args: argparse.Namespace, modules: str = "torch", title: str = "PyTorch") -> str:
    """Returns the Python of the other side.

    Raises:
      UserError: it does not start, or has not these modules.
    """
    python = str(args.reference_python or sys.executable)
    remedy = f"Give --reference-python one that has {title}."
    try:
        ran = subprocess.run([python, "-c", f"import {modules}"], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{python}: {error.strerror}. {remedy}") from None
    if ran.returncode:
        raise UserError(f"{python}: {(ran.stderr.strip().splitlines() or ['does not start'])[-1]}. {remedy}")
    return python


def _of_prismer(args: argparse.Namespace, rows: Sequence[str]) -> Rows:
    options = dict(seconds=args.seconds, rows=rows, alone=args.one_core, against=_checkout(args))
    return prismer.measure(args.reference, _python(args) if args.reference else "", **options)


def _family(args: argparse.Namespace, name: str) -> Rows:
    module, row_names = FAMILIES[name], ROWS[name]
    if name == "paligemma" and args.big_vision is not None:
        module, row_names = big_vision, list(big_vision.ROWS)
    if name == "blip2" and args.reference is not None:
        module, row_names = lavis, list(lavis.ROWS)
    rows = _rows(args, row_names)
    if name == "prismer":
        return _of_prismer(args, rows)
    options = dict(seconds=args.seconds, rows=rows, alone=args.one_core)
    if name == "nanovlm":
        return nanovlm.measure(args.reference, _python(args) if args.reference else "", **options)
    if module is big_vision:
        python = _python(args, big_vision.MODULES, "jax, flax, optax, orbax, einops and ml_collections")
        return big_vision.measure(args.big_vision, python, against=_checkout(args), **options)
    if module is lavis:
        return lavis.measure(args.reference, _python(args), **options)
    return module.measure(_python(args) if args.reference_python else None, against=_checkout(args), **options)


def _rows(args: argparse.Namespace, known: Iterable[str]) -> list[str]:
    return [choose("row", row, list(known)) for row in args.rows]


def _checkout(args: argparse.Namespace) -> Any:
    if args.against is not None and not (args.against / "tools/bench/worker.py").is_file():
        raise UserError(f"{args.against}: no checkout of this project: it has no tools/bench/worker.py.")
    return args.against


def _experts(args: argparse.Namespace) -> Rows:
    networks = [name for name in args.experts if choose("expert", name, experts.NETWORKS)]
    settings = dict(batch=args.batch_size, dtype=args.dtype, seconds=args.seconds, against=_checkout(args))
    if args.reference is not None:
        prismer.check_reference(args.reference)
    return experts.measure(networks, args.reference, _python(args) if args.reference else "", **settings)


def _loader(args: argparse.Namespace) -> Rows:
    if args.reference is not None:
        prismer.check_reference(args.reference)
    named = any(getattr(args, kind) is not None for kind in flags.KINDS)
    source = flags.open_source(args) if named else scenes.load(task="all", size=480, count=64)
    python = _python(args) if args.reference else ""
    return loader.measure(source, args.reference, python, seconds=args.seconds, against=_checkout(args))


SUITES: dict[str, Callable[[argparse.Namespace], Rows]] = {
    **{name: functools.partial(_of_prismer, rows=rows) for name, rows in OF_PRISMER.items()},
    "experts": _experts,
    "loader": _loader,
    "build": lambda args: build.measure(seconds=args.seconds),
    "limits": lambda args: limits.measure(_rows(args, prismer.ROWS), seconds=args.seconds),
    "startup": lambda args: startup.measure(against=_checkout(args)),
    **{name: functools.partial(_family, name=name) for name in FAMILIES},
}


def _machine() -> str:
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return f"{devices}, {os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}"


if __name__ == "__main__":
    run_main(main)
