"""Official files become what this project reads: python -m tools.convert COMMAND --help

    python -m tools.convert prismer --input pytorch_model.bin --variant prismer_base --output DIR
    python -m tools.convert backbone --vision ViT-B-16.pt --text pytorch_model.bin --variant prismer_base --output DIR
    python -m tools.convert expert --name depth --input dpt_hybrid-midas-501f0c75.pt --output weights/experts/depth
    python -m tools.convert label-tables --input FOLDER --output label_tables.npz
    python -m tools.convert ocr-labels --input FOLDER

  prismer       a checkpoint of Prismer or PrismerZ
  renumber      a checkpoint of version 0.1 that was trained with a SentencePiece model of one's own
  backbone      an untrained Prismer that starts from CLIP's and RoBERTa's weights
  expert        the weights of an expert model
  label-tables  the vectors of class names that label maps are looked up in
  ocr-labels    the .pt files beside the label maps of the official ocr_detection
  adapter       a converted model and an adapter for it, of the library PEFT
  nanovlm, paligemma, blip2   a model of these families, or parts to start one from

Without --variant a model has the sizes that the files say; what none of them says is --config.model.KEY=VALUE.

Models become a folder that captioning (--checkpoint), training (config.init) and tools.export take, an expert one that
tools.make_labels takes. Of a model's arrays one is in memory at a time; the disk of --output holds them twice for a
while.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import checkpoint, config, experts, models, runtime, tree
from prismer_jax.errors import UserError, as_installed, choose, run_main
from prismer_jax.experts import weights
from prismer_jax.files import storage
from prismer_jax.models import conversion, peft
from prismer_jax.registry import literal
from prismer_jax.weights import label_tables, ocr_words, safe, tokenizer_flag

from . import export

SMALL = 1 << 20  # bytes; arrays below stay in memory


def family(name: str, command: conversion.Command, argv: Sequence[str]) -> None:
    """Converts files of a family of models."""
    parser = config.ArgumentParser(prog=f"python -m tools.convert {name}", description=command.help)
    export.output_flags(parser, "the folder to write")
    command.flags(parser)
    _allow(parser)
    started, args = time.monotonic(), _flags(parser, argv, command.fields)
    config.check_seed(getattr(args, "seed", 0))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = command.run(args, functools.partial(_on_disk, folder=args.output.parent))
    checkpoint.export(args.output, result.variables, result.description, result.files)
    number = sum(leaf.size for leaf in jax.tree.leaves(result.variables["params"]))
    print(
        f"{args.output}: {getattr(args, 'variant', None) or name} at {result.model.image_size} pixels, {number:,} "
        f"parameters, in {time.monotonic() - started:.0f} s.{result.note}"
    )


def by_table(name: str) -> conversion.Command:
    """Returns the command of a family that has no more than a table."""
    module = models.family(name)

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", required=True, type=storage.on_disk, help="the official file")
        parser.add_argument("--variant", required=True, help=", ".join(module.VARIANTS))
        tokenizer_flag.add(parser, "tokenizers", required=True)

    def run(args: argparse.Namespace, put: conversion.Put) -> conversion.Converted:
        tokenizer = tokenizer_flag.read(args.tokenizer, "tokenizers")
        fields = conversion.merged({"name": name, "variant": args.variant}, args.model)
        model = models.build(**fields, tokenizer=tokenizer)
        table, state = conversion.of_family(name).TABLE, safe.load(args.input)
        variables = conversion.from_torch(state, model, table, str(args.input), allow=args.allow, put=put)
        tasks = module.tasks(model) if hasattr(module, "tasks") else {}
        description = {"model": fields, "tokenizer": tokenizer.spec, "tasks": tasks}
        return conversion.Converted(model, variables, description, {path.name: path for path in tokenizer.files()})

    return conversion.Command(f"Converts a checkpoint of {name}.", flags, run)


def family_commands() -> dict[str, Callable[[Sequence[str]], None]]:
    """Returns the commands of all families."""
    commands: dict[str, Callable[[Sequence[str]], None]] = {}
    for name in models.FAMILIES:
        module = conversion.of_family(name)
        by_name = {name: by_table(name)} if hasattr(module, "TABLE") else {}  # what is only trained here has none
        own = getattr(module, "COMMANDS", None) or by_name
        commands |= {key: functools.partial(family, key, command) for key, command in own.items()}
    return commands


def expert(argv: Sequence[str]) -> None:
    """Converts the official weights of an expert model."""
    parser = config.ArgumentParser(prog="python -m tools.convert expert", description=expert.__doc__)
    parser.add_argument("--name", required=True, help=", ".join(experts.EXPERTS))
    parser.add_argument("--input", required=True, type=storage.on_disk, help="the official file")
    export.output_flags(parser, "the folder to write; best called as --name")
    _allow(parser)
    started, args = time.monotonic(), _flags(parser, argv)
    model = choose("expert", args.name, experts.EXPERTS)()
    variables = weights.official(model, args.input, args.allow)
    weights.export(args.output, model, variables)
    number = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{args.output}: {args.name}, {number:,} parameters, in {time.monotonic() - started:.0f} s.")


def tables(argv: Sequence[str]) -> None:
    """Converts the official tables of label embeddings to one .npz."""
    parser = config.ArgumentParser(prog="python -m tools.convert label-tables", description=tables.__doc__)
    parser.add_argument(
        "--input", required=True, type=storage.on_disk, help=f"folder of {', '.join(label_tables.FILES)}"
    )
    export.output_flags(parser, "an .npz file")
    args = _flags(parser, argv)
    label_tables.convert(args.input, args.output)
    print(f"{args.output}: use it as --label-tables of the other commands.")


def ocr_labels(argv: Sequence[str]) -> None:
    """Converts the side files of official OCR labels, each beside itself."""
    parser = config.ArgumentParser(prog="python -m tools.convert ocr-labels", description=ocr_labels.__doc__)
    parser.add_argument(
        "--input", required=True, type=storage.on_disk, help="folder of labels; .npz are written beside"
    )
    args = _flags(parser, argv)
    print(f"{args.input}: converted {ocr_words.convert(args.input)} files.")


def adapter(argv: Sequence[str]) -> None:
    """Puts an adapter of PEFT beside the kernels of a model; tools.export --merge adds it to them."""
    parser = config.ArgumentParser(prog="python -m tools.convert adapter", description=adapter.__doc__)
    parser.add_argument("--checkpoint", required=True, type=storage.on_disk, help="the model, as exported or converted")
    parser.add_argument("--input", required=True, type=storage.on_disk, help="folder of adapter_model.safetensors")
    export.output_flags(parser, "the folder to write")
    args = _flags(parser, argv)
    variables, description = checkpoint.load_export(args.checkpoint)
    fields = description.get("model", {})
    if fields.get("lora"):
        raise UserError(f"{args.checkpoint} has adapters already: merge them first, by tools.export --merge.")
    base = {key: value for key, value in fields.items() if key != "quantize"}
    section, arrays = peft.read(args.input, models.build(**base), models.name_of(fields))
    params = tree.unflatten({**tree.flatten(variables["params"]), **arrays})
    described = {**description, "model": {**fields, "lora": section}}
    export.orbax(args.output, {**variables, "params": params}, described)
    print(f"{args.output}: {sum(x.size for x in arrays.values()):,} parameters of rank {section['rank']} were added.")


def _allow(parser: config.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="REGEX", help="keys that may be missing or unexpected"
    )


def _flags(parser: config.ArgumentParser, argv: Sequence[str], fields: bool = False) -> argparse.Namespace:
    """Returns the flags, and where `fields` may be given, as `model` those of --config.model.KEY=VALUE."""
    args, overrides = parser.parse(argv)
    known: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        section, _, name = key.partition(".")
        path = name.replace(".", "/")
        if not (fields and section == "model" and name):
            only = "--config.model.KEY alone is taken, a field of the model" if fields else "nothing here has a config"
            raise UserError(f"Unknown argument --config.{override}: {only}.")
        if name in ("name", "variant"):
            raise UserError(f"--config.model.{name}: is said by the command and its --variant.")
        if any(f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/") for other in known):
            raise UserError(f"--config.model.{name}: is given twice, or whole and in parts. Leave one out.")
        try:
            known[path] = literal(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            known[path] = text
    args.model = conversion.merged({}, tree.unflatten(known))  # which checks it
    if hasattr(args, "output"):
        export.check_output(args)
    return args


def _on_disk(array: Any, folder: pathlib.Path) -> np.ndarray:
    """Returns the same array, in a file without a name where it is large: a model need not fit in memory."""
    array = np.asarray(array)
    if array.nbytes < SMALL:
        return array
    with tempfile.TemporaryFile(dir=folder) as file:
        mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
    mapped[...] = array
    return mapped


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "adapter": adapter,
    "expert": expert,
    "label-tables": tables,
    "ocr-labels": ocr_labels,
}


def main(argv: Sequence[str] | None = None) -> None:
    command, *flags = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(as_installed(__doc__))
        return
    runtime.use_compilation_cache()
    runtime.log_warnings()
    choose("command", command, {**family_commands(), **COMMANDS})(flags)


if __name__ == "__main__":
    run_main(main)
