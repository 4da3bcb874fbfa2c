"""Packs a model's kernels in four bits by what they read in a config's data.

    python -m tools.quantize --checkpoint models/paligemma --config transfers/paligemma.py:qlora --output packed/
    python -m prismer_jax.train --config transfers/paligemma.py:qlora,init=packed/ --workdir runs/mine

Packs what `config.model.quantize` matches. Without this command a training packs the same kernels while it reads the
checkpoint, each weight as near as can be; here rows make up for the errors of others, which for the data at hand takes
away most of what packing costs (docs/lora.md). The result is a model that trains adapters, captions and answers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax import assembly, checkpoint, config, input, pp, runtime, sharding, tree
from prismer_jax.batch import Batch
from prismer_jax.errors import UserError, run_main
from prismer_jax.evaluate import load_variables
from prismer_jax.files import progress, storage
from prismer_jax.losses import Loss
from prismer_jax.models import calibration
from prismer_jax.models.lora import Adapted, check_plain
from prismer_jax.towers import gptq
from prismer_jax.training.features import with_photos

from .export import check_output, orbax, output_flags


def read_by(model: Adapted, variables: Any, loss: Loss, batches: Iterable[Any], total: int) -> dict[str, jax.Array]:
    """Returns the `calibration.products` of the kernels that are to be packed, summed over so many batches.

    Raises:
      UserError: they are not finite.
    """

    @jax.jit
    def products(variables: Any, batch: Any) -> dict[str, jax.Array]:
        return calibration.products(model.model, model.packed, variables, loss, Batch(batch))

    add = jax.jit(functools.partial(jax.tree.map, jnp.add), donate_argnums=0)
    read: dict[str, jax.Array] = {}
    with progress.bar("what kernels read", total, unit="batches") as advance:
        for batch in batches:
            one = products(variables, batch)
            read = jax.block_until_ready(add(read, one) if read else one)
            advance()
    if odd := sorted(name for name, x in read.items() if not jnp.isfinite(x).all()):
        raise UserError(f"{odd[0]} reads, or its gradient is, what is not finite. Try --config.model.dtype=float32.")
    return read


def pack(variables: Mapping[str, Any], read: dict[str, jax.Array]) -> dict[str, Any]:
    """Returns variables with these kernels packed; products and kernels are let go of one after the other."""
    flat, packs = tree.flatten(variables), jax.jit(gptq.pack_stacked)
    with progress.bar("packed", len(read), unit="kernels") as advance:
        for name in sorted(read):
            packed = packs(flat.pop(f"params/{name}"), read.pop(name))
            flat |= {f"params/{name}/{part}": x for part, x in jax.block_until_ready(packed).items()}
            advance()
    return tree.unflatten(flat)


def size(variables: Any) -> float:
    return sum(x.nbytes for x in jax.tree.leaves(variables)) / 1e6


def quantize(cfg: config.Section, path: pathlib.Path, number: int, output: pathlib.Path) -> str:
    """Writes the model with packed kernels into a folder, and returns what there is to say of it.

    Args:
      cfg: the config, with `model.quantize`.
      path: of the checkpoint, whatever `checkpoint.find` accepts.
      number: of batches.

    Raises:
      UserError: config and checkpoint do not fit each other, or the data cannot be used; or as `read_by`.
    """
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    with jax.set_mesh(mesh):
        tokenizer, fields = pp.tokenizer.load(cfg.tokenizer), config.plain(cfg.model)
        fields.pop("lora", None)
        model = assembly.make_model(config.Section({"model": fields}), tokenizer)
        whole = {key: value for key, value in fields.items() if key != "quantize"}
        variables = load_variables(config.Section({**config.plain(cfg), "model": whole}), model.model, mesh, path)
        batches = input.train_batches(
            with_photos(assembly.load_mixture(cfg.data, tokenizer), cfg, tokenizer),
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            num_workers=cfg.get("num_workers", 0),
        )
        with contextlib.closing(input.to_device(batches, sharding.batch_sharding(mesh))) as placed:
            some = itertools.islice(placed, number)
            read = read_by(model, variables, assembly.make_loss(cfg.loss), some, number)
        before, variables = size(variables), pack(variables, read)
    orbax(output, variables, {**checkpoint.description(path), "model": fields})
    return (
        f"{len(model.packed)} kernels packed by what they read of {number} batches of {cfg.batch_size}; "
        f"{size(variables):,.1f} MB, {before:,.1f} before"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.quantize", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, type=storage.folder, help="a workdir, an export, a checkpoint")
    parser.add_argument("--config", required=True, help="FILE.py[:arg]; its model.quantize says what is packed")
    parser.add_argument("--batches", type=int, default=8, help="of its data, of config.batch_size examples; default 8")
    output_flags(parser, "a folder")
    args, overrides = parser.parse(argv)
    cfg = config.load(args.config, overrides)
    kind = (config.plain(cfg.model.get("quantize")) or {}).get("kind", gptq.KIND)
    if "quantize" not in cfg.model or kind != gptq.KIND:
        raise UserError(
            f"{args.config}: set config.model.quantize = dict(match=..., kind={gptq.KIND!r}): that is what is packed. "
            "Other kinds lose too little to make up for."
        )
    if args.batches < 1:
        raise UserError(f"--batches {args.batches}: kernels are packed by one batch at least.")
    check_output(args)
    check_plain(checkpoint.description(args.checkpoint).get("model", {}), args.checkpoint)
    runtime.use_compilation_cache()
    print(f"{args.output}: {quantize(cfg, args.checkpoint, args.batches, args.output)}.")


if __name__ == "__main__":
    run_main(main)
