"""What becomes of Prismer's files: the commands `prismer` and `backbone` of tools.convert, and a checkpoint's tasks."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import checkpoint, labels, models, pp
from prismer_jax.errors import UserError, choose
from prismer_jax.files import storage
from prismer_jax.models import conversion
from prismer_jax.models.conversion import Command, Converted, Put
from prismer_jax.models.prismer import backbones
from prismer_jax.models.prismer.model import VARIANTS, Prismer, build
from prismer_jax.models.prismer.table import POSITIONS, TABLE, Facts, facts_of, fields_by_shapes, resized
from prismer_jax.towers import label_lookup
from prismer_jax.weights import label_tables, rules, safe, tokenizer_flag

SIZES = {"width", "layers", "heads", "patch_size", "decoder"}  # fields without which a model is its variant's

# What every model of the reference is used with (configs/caption.yaml, vqa.yaml; model/prismer_{caption,vqa}.py;
# dataset/utils.py).
PREFIX, PREFIX_TOKENS = "A picture of", 4
LEAST, MOST = 8, 20  # tokens of a caption, <s> and prefix among them
QUESTION_TOKENS = 35
LABEL_SIZE = 224
EXPERTS = {"prismer": "all", "prismerz": "none"}  # of the two kinds of checkpoints


def table_of(model: Prismer) -> rules.Table:
    """Returns the table of the official names of a model's parameters.

    Raises:
      UserError: the model has parameters that the official one lacks.
    """
    if model.places and model.experts:
        raise UserError("A Prismer with `places` has no names in the official files: export it as orbax or msgpack.")
    return TABLE


def from_checkpoint(args: argparse.Namespace, put: Put) -> Converted:
    """Returns the model of an official checkpoint."""
    state = safe.load(args.input)
    (model, fields), where = model_for(args, facts_of(state), state), str(args.input)
    if args.resolution is not None:
        rows = (model.image_size // model.patch_size) ** 2
        state = resized(TABLE.spell(state, where), POSITIONS, rows)
    variables = conversion.from_torch(state, model, TABLE, where, allow=args.allow, put=put)
    return _described(args, model, fields, variables, put)


def from_backbones(args: argparse.Namespace, put: Put) -> Converted:
    """Returns an untrained model that starts from CLIP's and RoBERTa's weights."""
    if args.vision is None and args.text is None:
        raise UserError("Give --vision, --text or both: the files to start from.")
    model, fields = model_for(args)
    variables = backbones.initialize(model, args.vision, args.text, args.seed, allow=args.allow, put=put)
    return _described(args, model, fields, variables, put)


def model_for(
    args: argparse.Namespace, facts: Facts | None = None, state: Any = None
) -> tuple[Prismer, dict[str, Any]]:
    """Returns the model of the flags, or without --variant of a checkpoint's shapes, and its arguments of models.build.

    Raises:
      UserError: the checkpoint is of another model than the flags say, which it names, or does not say its sizes.
    """
    if args.variant is None and state is None:
        raise UserError(
            f"Give --variant, the model to start: {', '.join(f'{k}_{v}' for k in EXPERTS for v in VARIANTS)}."
        )
    if state is not None and facts is None:
        _check_kind(args, state)
    if args.variant is None:
        fields = fields_by_shapes(state, args.model, str(args.input)) | {"image_size": facts.resolution}
        experts = [name for name in labels.PAPER if labels.EXPERTS[name].stem in facts.stems]
    else:
        names = {f"{kind}_{size}": (kind, size) for kind in EXPERTS for size in VARIANTS}
        kind, size = choose("variant", args.variant, names)
        if state is not None and not args.model.keys() & SIZES:
            _check(args, kind, size, facts)
        fields, experts = {"variant": size, "image_size": VARIANTS[size]["image_size"]}, EXPERTS[kind]
    fields = conversion.merged(fields, args.model)
    patch = {**VARIANTS[fields["variant"]], **fields}["patch_size"]
    if args.resolution is not None:
        if args.resolution < patch:
            raise UserError(f"--resolution {args.resolution} is less than a patch of {patch} pixels.")
        fields["image_size"] = args.resolution
    fields["experts"] = list(labels.select(args.experts or experts or "none"))
    tokenizer = tokenizer_flag.read(args.tokenizer, "roberta") if args.tokenizer else None
    return models.build("prismer", **fields, tokenizer=tokenizer), fields


def _check_kind(args: argparse.Namespace, state: Any) -> None:
    """Raises a UserError that says what a file is that is no checkpoint of Prismer."""
    keys = TABLE.spell(state, str(args.input))
    if backbone := next((part for part in ("visual", "roberta") if any(k.startswith(part) for k in keys)), None):
        flag = {"visual": "--vision", "roberta": "--text"}[backbone]
        raise UserError(f"{args.input} is a backbone; use: python -m tools.convert backbone {flag} {args.input} ...")
    raise UserError(f"{args.input} is no checkpoint of Prismer: it lacks {POSITIONS}.")


def _check(args: argparse.Namespace, kind: str, size: str, facts: Facts) -> None:
    """Raises a UserError that says which model a checkpoint is of, where it is not that of the flags."""
    own = f"{'prismer' if facts.stems else 'prismerz'}_{facts.variant}"
    if facts.variant and facts.variant != size:
        raise UserError(f"{args.input} is a {own} checkpoint; use --variant {own}.")
    if facts.variant is None or args.allow:  # all differences are listed when it is read
        return
    experts = labels.select(args.experts or EXPERTS[kind])
    if facts.stems != {labels.EXPERTS[name].stem for name in experts}:
        if not facts.stems or (not experts and facts.stems == {labels.EXPERTS[name].stem for name in labels.PAPER}):
            raise UserError(f"{args.input} is a {own} checkpoint; use --variant {own}.")
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


def _described(
    args: argparse.Namespace, model: Prismer, fields: dict[str, Any], variables: dict[str, Any], put: Put
) -> Converted:
    vectors, count = label_lookup.label_tables(model.experts, model.classes), PREFIX_TOKENS
    spec, files = "roberta:.", {}
    if args.label_tables is not None:
        vectors = label_tables.load(args.label_tables, model.experts)
    elif vectors:
        logging.warning(
            "without --label-tables, label maps of %s are looked up in stand-in vectors, which the official models do "
            "not know: caption without labels, or convert again with them.",
            ", ".join(vectors),
        )
    if args.tokenizer is not None:
        tokenizer = tokenizer_flag.read(args.tokenizer, "roberta")
        if model.vocab_size < tokenizer.vocab_size or model.pad != tokenizer.pad:
            raise UserError(
                f"{args.tokenizer}: has {tokenizer.vocab_size} tokens and padding {tokenizer.pad}, the model "
                f"{model.vocab_size} and {model.pad}. Use RoBERTa's, or what the model was trained with."
            )
        (spec, files), count = tokenizer_flag.carried(tokenizer), 1 + len(tokenizer.encode(args.prefix))
    elif args.prefix != PREFIX:
        raise UserError("--prefix needs --tokenizer too, to count its tokens.")
    description = {
        "model": {"name": "prismer", **fields},
        "tokenizer": spec,
        "tasks": tasks(model.experts, model.image_size, args.prefix, count),
    }
    variables = {**variables, "tables": {name: put(table) for name, table in vectors.items()}}
    note = "" if files else " Put vocab.json and merges.txt into it to caption."
    return Converted(model, variables, description, files, note)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant",
        help="prismer_base, prismer_large, prismerz_base, prismerz_large ...; a checkpoint's own by default",
    )
    parser.add_argument("--resolution", type=int, help="pixels a side; positions are resized to it; the variant's")
    parser.add_argument("--experts", help="depth+edge, all or none, where they are not the variant's own")
    tokenizer_flag.add(parser, "roberta")
    parser.add_argument("--label-tables", type=storage.on_disk, help="what the command label-tables wrote")
    parser.add_argument("--prefix", default=PREFIX, help="what captions begin with; '' for pretrain checkpoints")


def _checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", required=True, type=storage.on_disk, help="the official pytorch_model.bin, or an index of shards"
    )
    _flags(parser)


def _backbone_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vision", type=storage.on_disk, help="CLIP's file: ViT-B-16.pt, ViT-L-14-336px.pt, OpenCLIP's H"
    )
    parser.add_argument("--text", type=storage.on_disk, help="RoBERTa's file: pytorch_model.bin or model.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of new parameters")
    _flags(parser)


def renumbered(args: argparse.Namespace, put: Put) -> Converted:
    """Returns the model of an export of version 0.1 with the rows of its embeddings in the order of its tokenizer.

    That version moved every SentencePiece model's <s>, padding, </s> and unknown to the ids 0 to 3, all else after them
    in the order of the file, and positions counted on from 1.
    """
    variables, description = checkpoint.load_export(args.input)
    tokenizer = pp.tokenizer.load_from(description["folder"], description["tokenizer"])
    first = [tokenizer.bos, tokenizer.pad, tokenizer.eos]
    rest = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special]
    old = {**{new: row for row, new in enumerate(first)}, **{new: 4 + row for row, new in enumerate(rest)}}
    rows = np.array([old.get(i, 3) for i in range(tokenizer.vocab_size)])
    decoder = dict(variables["params"]["decoder"])
    for name in ("word_embedding", "head_bias"):
        decoder[name] = np.concatenate([decoder[name][rows], decoder[name][len(rows) :]])
    decoder["position_embedding"] = np.roll(decoder["position_embedding"], tokenizer.pad - 1, axis=0)
    variables = {**variables, "params": {**variables["params"], "decoder": decoder}}
    model = build(**{k: v for k, v in description["model"].items() if k != "name"}, tokenizer=tokenizer)
    usage = {key: description[key] for key in ("model", "tokenizer", "tasks")}
    files = {path.name: path for path in tokenizer.files()}
    return Converted(model, jax.tree.map(put, variables), usage, files)


def _renumber_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, type=storage.on_disk, help="an export or a run of version 0.1")


COMMANDS = {
    "renumber": Command(
        "Mends a checkpoint of version 0.1 that was trained with a SentencePiece model.",
        _renumber_flags,
        renumbered,
        fields=False,
    ),
    "prismer": Command("Converts a checkpoint of Prismer or PrismerZ.", _checkpoint_flags, from_checkpoint),
    "backbone": Command(
        "Makes an untrained Prismer that starts from CLIP's and RoBERTa's weights.", _backbone_flags, from_backbones
    ),
}
