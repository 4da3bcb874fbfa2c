"""Official files become what this project reads: python -m tools.convert COMMAND --help

    python -m tools.convert prismer --input pytorch_model.bin --variant prismer_base --output DIR
    python -m tools.convert backbone --vision ViT-B-16.pt --text pytorch_model.bin --variant prismer_base --output DIR
    python -m tools.convert expert --name depth --input dpt_hybrid-midas-501f0c75.pt --output weights/experts/depth
    python -m tools.convert label-tables --input FOLDER --output label_tables.npz
    python -m tools.convert ocr-labels --input FOLDER

  prismer       a checkpoint of Prismer or PrismerZ
  backbone      an untrained Prismer that starts from CLIP's and RoBERTa's weights
  expert        the weights of an expert model
  label-tables  the vectors of class names that label maps are looked up in
  ocr-labels    the .pt files beside the label maps of the official ocr_detection

The first two write a folder that captioning (--checkpoint), training (config.init) and tools.export take, the third one
that tools.make_labels takes.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from prismer_jax import checkpoint, config, experts, labels, models, pp, runtime
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.experts import weights
from prismer_jax.models import backbones
from prismer_jax.models import prismer_weights as official
from prismer_jax.models.prismer import VARIANTS, Prismer
from prismer_jax.models.prismer import label_tables as stand_ins
from prismer_jax.weights import label_tables, safe, words

# What every model of the reference is used with (configs/caption.yaml, vqa.yaml; model/prismer_{caption,vqa}.py;
# dataset/utils.py).
PREFIX, PREFIX_TOKENS = "A picture of", 4
LEAST, MOST = 8, 20  # tokens of a caption, <s> and prefix among them
QUESTION_TOKENS = 35
LABEL_SIZE = 224
FAMILIES = {"prismer": "all", "prismerz": "none"}  # the experts of each


def prismer(argv: Sequence[str]) -> None:
    """Converts a checkpoint of Prismer or PrismerZ."""
    parser = config.ArgumentParser(prog="python -m tools.convert prismer", description=prismer.__doc__)
    parser.add_argument("--input", required=True, type=pathlib.Path, help="the official pytorch_model.bin")
    _allow(parser)
    started, args = time.monotonic(), _parse(parser, argv)
    state = safe.load(args.input)
    model = model_for(args, official.facts_of(state), state)
    variables = official.from_torch(
        state, model, str(args.input), resize=args.resolution is not None, allow=args.allow, put=_on_cpu
    )
    _export(args, model, variables, started)


def backbone(argv: Sequence[str]) -> None:
    """Makes an untrained Prismer that starts from CLIP's and RoBERTa's weights."""
    parser = config.ArgumentParser(prog="python -m tools.convert backbone", description=backbone.__doc__)
    parser.add_argument("--vision", type=pathlib.Path, help="CLIP's file: ViT-B-16.pt, ViT-L-14-336px.pt, OpenCLIP's H")
    parser.add_argument("--text", type=pathlib.Path, help="RoBERTa's file: pytorch_model.bin or model.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of what is fresh")
    _allow(parser)
    started, args = time.monotonic(), _parse(parser, argv)
    if args.vision is None and args.text is None:
        raise UserError("Give --vision, --text or both: the files to start from.")
    model = model_for(args)
    variables = backbones.initialize(model, args.vision, args.text, args.seed, allow=args.allow, put=_on_cpu)
    _export(args, model, variables, started)


def expert(argv: Sequence[str]) -> None:
    """Converts the official weights of an expert model."""
    parser = config.ArgumentParser(prog="python -m tools.convert expert", description=expert.__doc__)
    parser.add_argument("--name", required=True, help=", ".join(experts.EXPERTS))
    parser.add_argument("--input", required=True, type=pathlib.Path, help="the official file")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the folder to write; best called as --name")
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
    parser.add_argument("--input", required=True, type=pathlib.Path, help=f"folder of {', '.join(label_tables.FILES)}")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="an .npz file")
    args = _flags(parser, argv)
    label_tables.convert(args.input, args.output)
    print(f"{args.output}: use it as --label-tables of the other commands.")


def ocr_labels(argv: Sequence[str]) -> None:
    """Converts the side files of official OCR labels, each beside itself."""
    parser = config.ArgumentParser(prog="python -m tools.convert ocr-labels", description=ocr_labels.__doc__)
    parser.add_argument("--input", required=True, type=pathlib.Path, help="folder of labels; .npz are written beside")
    args = _flags(parser, argv)
    print(f"{args.input}: converted {words.convert(args.input)} files.")


def model_for(args: argparse.Namespace, facts: official.Facts | None = None, state: Any = None) -> Prismer:
    """Returns the model of the flags; a checkpoint that is of another one is a UserError that says which."""
    names = {f"{family}_{size}": (family, size) for family in FAMILIES for size in VARIANTS}
    family, size = choose("variant", args.variant, names)
    if state is not None:
        _check(args, family, size, facts, state)
    resolution = VARIANTS[size]["image_size"] if args.resolution is None else args.resolution
    if resolution < VARIANTS[size]["patch_size"]:
        raise UserError(f"--resolution {resolution} is less than a patch of {VARIANTS[size]['patch_size']} pixels.")
    return models.build("prismer", variant=size, experts=args.experts or FAMILIES[family], image_size=resolution)


def _check(args: argparse.Namespace, family: str, size: str, facts: official.Facts | None, state: Any) -> None:
    if facts is None:
        if backbone := next((kind for kind in ("visual", "roberta") if any(k.startswith(kind) for k in state)), None):
            flag = {"visual": "--vision", "roberta": "--text"}[backbone]
            raise UserError(
                f"{args.input} is a backbone; use: python -m tools.convert backbone {flag} {args.input} ..."
            )
        raise UserError(f"{args.input} is no checkpoint of Prismer: it lacks {official.POSITIONS}.")
    found = f"{'prismer' if facts.stems else 'prismerz'}_{facts.variant}"
    if facts.variant and facts.variant != size:
        raise UserError(f"{args.input} is a {found} checkpoint; use --variant {found}.")
    if facts.variant is None or args.allow:  # all differences are listed when it is read
        return
    wanted = labels.select(args.experts or FAMILIES[family])
    if facts.stems != {labels.EXPERTS[name].stem for name in wanted}:
        if not facts.stems or (not wanted and facts.stems == {labels.EXPERTS[name].stem for name in labels.PAPER}):
            raise UserError(f"{args.input} is a {found} checkpoint; use --variant {found}.")
        experts = "+".join(name for name in labels.PAPER if labels.EXPERTS[name].stem in facts.stems)
        raise UserError(f"{args.input} has the experts {experts}; use --experts {experts}.")
    grid = VARIANTS[size]["image_size"] // VARIANTS[size]["patch_size"]
    if args.resolution is None and facts.grid != grid:
        raise UserError(
            f"{args.input} is of resolution {facts.resolution} ({facts.grid}x{facts.grid} positions); use --resolution "
            f"{facts.resolution} to keep that, or --resolution {VARIANTS[size]['image_size']} to resize its positions."
        )


def tasks(experts: Sequence[str], resolution: int, prefix: str, prefix_tokens: int) -> dict[str, Any]:
    """Returns how a converted checkpoint captions and answers: as the reference does, photo by photo."""
    look = f"labels_for({'+'.join(experts) or 'none'!r})|decode|resize({resolution}, {LABEL_SIZE})"
    return {
        "caption": {
            "pp": f"{look}|caption_prompt({prefix!r})|tokenize({max(3, prefix_tokens)})",
            "style": "reference",
            "decode": dict(
                method="beam",
                num_beams=3,
                max_new=max(1, MOST - prefix_tokens),
                min_new=max(0, LEAST - prefix_tokens),
                padding="reference",
            ),
        },
        "question": {
            "pp": f"{look}|question_prompt(style='reference')|tokenize({QUESTION_TOKENS})",
            "style": "reference",
            "decode": dict(method="beam", num_beams=3, length_penalty=-1.0, max_new=10, min_new=2, padding="reference"),
        },
    }


def _export(args: argparse.Namespace, model: Prismer, variables: dict[str, Any], started: float) -> None:
    vectors, files, count = stand_ins(model.experts, model.classes), {}, PREFIX_TOKENS
    if args.label_tables is not None:
        vectors = label_tables.load(args.label_tables, model.experts)
    elif vectors:
        logging.warning(
            "without --label-tables, label maps of %s are looked up in stand-in vectors, which the official models do "
            "not know: caption without labels, or convert again with them.",
            ", ".join(vectors),
        )
    if args.tokenizer is not None:
        tokenizer = pp.tokenizer.load(f"roberta:{args.tokenizer}")
        if (size := model.decoder["vocab_size"]) < tokenizer.vocab_size:
            raise UserError(
                f"{args.tokenizer}: has {tokenizer.vocab_size} tokens, the model only {size}. Use RoBERTa's."
            )
        files, count = {path.name: path for path in tokenizer.files()}, 1 + len(tokenizer.encode(args.prefix))
    elif args.prefix != PREFIX:
        raise UserError("--prefix needs --tokenizer too, to count its tokens.")
    _, size = args.variant.split("_")
    what = {
        "model": dict(name="prismer", variant=size, experts=list(model.experts), image_size=model.image_size),
        "tokenizer": "roberta:.",
        "tasks": tasks(model.experts, model.image_size, args.prefix, count),
    }
    variables = {**variables, "tables": {name: _on_cpu(table) for name, table in vectors.items()}}
    checkpoint.export(args.output, variables, what, files)
    number = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    missing = "" if files else " Put vocab.json and merges.txt into it to caption."
    print(
        f"{args.output}: {args.variant} at {model.image_size} pixels, {number:,} parameters, in "
        f"{time.monotonic() - started:.0f} s.{missing}"
    )


def _parse(parser: config.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Adds the flags that both kinds of models have."""
    parser.add_argument(
        "--variant", required=True, help="prismer_base, prismer_large, prismerz_base, prismerz_large ..."
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the folder to write")
    parser.add_argument("--resolution", type=int, help="pixels a side; positions are resized to it. Default 480")
    parser.add_argument("--experts", help="depth+edge, all or none, where they are not the variant's own")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="folder of RoBERTa's vocab.json and merges.txt")
    parser.add_argument("--label-tables", type=pathlib.Path, help="what the command label-tables wrote")
    parser.add_argument("--prefix", default=PREFIX, help="what captions begin with; '' for pretrain checkpoints")
    return _flags(parser, argv)


def _allow(parser: config.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="REGEX", help="keys that may be missing or unexpected"
    )


def _flags(parser: config.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    args, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"Unknown argument --config.{overrides[0]}: nothing here has a config.")
    return args


def _on_cpu(array: Any) -> jax.Array:
    return jax.block_until_ready(jax.device_put(array, jax.local_devices(backend="cpu")[0]))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "prismer": prismer,
    "backbone": backbone,
    "expert": expert,
    "label-tables": tables,
    "ocr-labels": ocr_labels,
}


def main(argv: Sequence[str] | None = None) -> None:
    command, *flags = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
        return
    runtime.use_compilation_cache()
    runtime.log_warnings()
    choose("command", command, COMMANDS)(flags)


if __name__ == "__main__":
    run_main(main)
