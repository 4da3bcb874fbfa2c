"""A checkpoint for other programs: python -m tools.export --checkpoint DIR --format FORMAT --output FILE_OR_FOLDER

  torch        the official state dict, as torch.load reads it; written without PyTorch
  safetensors  the same keys and arrays as .safetensors
  orbax        a self-contained folder (weights, config, tokenizer) out of a run or one of its checkpoints
  msgpack      the nested variables, as flax.serialization.msgpack_restore reads them
  nanovlm      a folder that the original nanoVLM's from_pretrained reads
  big_vision   a folder with PaliGemma's model.npz, as big_vision reads it
  paligemma_hf a folder that transformers' PaliGemmaForConditionalGeneration reads
  blip2_hf     a folder that transformers' Blip2ForConditionalGeneration reads
  adapter      a folder of the LoRA adapters alone, which the library PEFT reads

A model with adapters or packed kernels (docs/lora.md) goes into the originals' formats as one without, by --merge.

The first two hold what the official model has: not the label tables, which the official code keeps in files of its own.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from prismer_jax import checkpoint, config, models, optim, tree
from prismer_jax.checkpoint import disk
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage
from prismer_jax.models import conversion, lora, peft
from prismer_jax.weights import write
from prismer_jax.weights.rules import grouped


def torch(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the official state dict as torch.save does."""
    write.torch_file(output, _official(variables, description))


def safetensors(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the official state dict as safetensors."""
    write.safetensors_file(output, _official(variables, description))


def orbax(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes a self-contained folder, with what lies beside the weights."""
    folder = pathlib.Path(description["folder"])
    own = (checkpoint.DESCRIPTION, "metrics.json", disk.SIZES)  # of this folder, or of the run it lies in
    files = {path.name: path for path in folder.iterdir() if path.is_file() and path.name not in own}
    files = files if (folder / checkpoint.DESCRIPTION).exists() else {}  # a step that lies among others' files
    what = {key: value for key, value in description.items() if key not in ("folder", "versions")}
    checkpoint.export(output, variables, what, files)


def msgpack(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the nested variables as Flax's bytes, array by array: all at once they would be in memory three times."""
    from flax import serialization
    from msgpack import Packer

    packer = Packer()

    def pieces(part: Any) -> Iterator[bytes]:
        if not isinstance(part, Mapping):
            yield serialization.msgpack_serialize(jax.device_get(part))
            return
        yield packer.pack_map_header(len(part))
        for name, value in part.items():
            yield packer.pack(name)
            yield from pieces(value)

    with write.replacing(output) as file:
        file.writelines(pieces(variables))


def adapter(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the adapters of LoRA as PEFT does.

    Raises:
      UserError: there are none, or something else was trained, without which they say something else.
    """
    fields = description.get("model", {})
    if not fields.get("lora"):
        raise UserError(f"{description['folder']} has no adapters: config.model.lora was not set.")
    name, model = models.name_of(fields), models.build(**fields)
    if "freeze" in description:  # it was trained here, and not given its adapters by tools.convert
        trained = optim.split(variables["params"], models.frozen(name, description["freeze"], model))[0]
        moved = [*(key for key in trained if "/lora/" not in key), *tree.flatten(variables.get("batch_stats", {}))]
        if moved:
            raise UserError(
                f"{description['folder']}: {grouped(moved)} were trained, too, which a folder of adapters lacks. Use "
                "--merge with another format, or --format orbax."
            )
    peft.write(output, variables["params"], model, name)


def merged(variables: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables and the description of a model whose adapters are in its kernels, none of them packed."""
    fields = description.get("model", {})
    if lora.is_plain(fields):
        raise UserError(f"{description['folder']} has neither adapters nor packed kernels: leave out --merge.")
    variables, fields = lora.plain(variables, fields)
    return variables, {**{key: value for key, value in description.items() if key != "freeze"}, "model": fields}


def _official(variables: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the official state dict, by the table of the model's family."""
    if not (fields := description.get("model")):
        raise UserError(f"{description['folder']} does not say which model it is of; use --format orbax or msgpack.")
    name = models.name_of(fields)
    if "labels" in variables.get("params", {}):  # which LabelTokens reads; Prismer's stems are its own
        raise UserError(f"{description['folder']}: the original of {name} has no experts; use --format orbax.")
    try:
        table = conversion.table_of(name, models.build(**fields))
    except UserError as error:
        raise UserError(f"{description['folder']}: {error}") from None
    return conversion.to_torch(variables, table)


def on_cpu(shapes: Any) -> Any:
    """Returns shardings with which a checkpoint is read into the CPU's memory, as `checkpoint.load_export` asks."""
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0]), shapes)


AS_IT_IS = ("orbax", "msgpack", "adapter")  # formats for what these make of it
Writer = Callable[[pathlib.Path, Mapping[str, Any], Mapping[str, Any]], None]
FORMATS: dict[str, Writer] = {
    "torch": torch,
    "safetensors": safetensors,
    "orbax": orbax,
    "adapter": adapter,
    "msgpack": msgpack,
}


def output_flags(parser: config.ArgumentParser, what: str) -> None:
    """Adds --output, which `what` describes, and --force, for `check_output`."""
    parser.add_argument("--output", required=True, type=storage.on_disk, help=what)
    parser.add_argument("--force", action="store_true", help="replace what is there")


def check_output(args: argparse.Namespace) -> None:
    """Raises a UserError where the output is there, and is no empty folder, unless --force is given."""
    if args.output.exists() and not args.force and not disk.is_free(args.output):
        raise UserError(f"{args.output} exists; choose another name, or replace it with --force.")


def family_formats() -> dict[str, Writer]:
    """Returns the formats of all families' originals, which are folders."""
    formats: dict[str, Writer] = {}
    for name in models.FAMILIES:
        formats |= getattr(conversion.of_family(name), "FORMATS", {})
    return formats


def main(argv: Sequence[str] | None = None) -> None:
    folders = {"orbax": orbax, "adapter": adapter, **family_formats()}
    formats = {**FORMATS, **folders}
    parser = config.ArgumentParser(prog="python -m tools.export", description=__doc__.partition(":")[0])
    parser.add_argument("--checkpoint", required=True, type=storage.folder, help="an export, a workdir or a checkpoint")
    parser.add_argument("--format", required=True, help=", ".join(formats))
    output_flags(parser, f"a folder for {', '.join(folders)}, else a file")
    parser.add_argument("--merge", action="store_true", help="add adapters to their kernels, and unpack these")
    args = parser.parse_flags(argv, "a checkpoint carries its own config")
    writer = choose("format", args.format, formats)
    if args.merge and args.format == "adapter":
        raise UserError(
            "--merge adds adapters to kernels, and the format adapter is of adapters alone: leave out --merge."
        )
    check_output(args)
    if args.output.is_dir() and args.format not in folders:
        raise UserError(f"{args.output} is a folder; {args.format} is one file.")
    what = checkpoint.description(args.checkpoint).get("model", {})
    if args.format not in AS_IT_IS and not args.merge and not lora.is_plain(what):
        raise UserError(f"{args.checkpoint} has adapters or packed kernels, which {args.format} lacks: add --merge.")
    if args.format not in FORMATS:
        name = models.name_of(what)
        if args.format not in (own := {**FORMATS, **getattr(conversion.of_family(name), "FORMATS", {})}):
            raise UserError(
                f"{args.checkpoint} is a {name}, not written as {args.format}; use one of {', '.join(own)}."
            )
    variables, description = checkpoint.load_export(args.checkpoint, on_cpu)
    if args.merge:
        variables, description = merged(variables, description)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    writer(args.output.resolve() if args.output.is_file() else args.output, variables, description)  # a link stays one
    print(f"{args.output}: written from {checkpoint.find(args.checkpoint)}.")


if __name__ == "__main__":
    run_main(main)
