"""What becomes of BLIP-2's files, each alone or several together: `tools.convert blip2`, `tools.export`."""

from __future__ import annotations

import argparse
import functools
import logging
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax import models, tree
from prismer_jax.errors import UserError, choose
from prismer_jax.files import storage
from prismer_jax.models import conversion
from prismer_jax.models.blip2 import bert, config_json, file_sizes, parts
from prismer_jax.models.blip2.model import RESIZE, VARIANTS, VIT_L
from prismer_jax.models.blip2.table import table as table_of
from prismer_jax.models.blip2.table import to_hugging_face
from prismer_jax.models.conversion import Command, Converted, Put
from prismer_jax.weights import rules, tokenizer_flag, write

__all__ = ["COMMANDS", "FORMATS", "table_of"]

PACKED = ("int8", "nf4")
DTYPES = dict.fromkeys(("float32", "bfloat16", "float16", *PACKED))
QUANTIZED = "(language|vision)/.*/kernel"  # what int8 and nf4 pack: what is not trained
PROMPT, ANSWER = 32, 30  # tokens of what is asked and said at most
POSITIONS = "params/vision/position_embedding"

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace, put: Put) -> Converted:
    """Converts what --input has, or --qformer with --vision and --language.

    A file of stage 1 with a --language makes a model to begin stage 2 with: its heads are left out, and the layer in
    front of the language model is fresh. A BERT makes a model to begin stage 1 with: what it lacks is fresh.

    Raises:
      UserError: a part is missing, or one does not fit; the message says which, and what to give.
    """
    choose("dtype", args.dtype, DTYPES)
    if (args.input is None) == (args.qformer is None):
        raise UserError("Give --input, a repository of Hugging Face's, or --qformer with --vision and --language.")
    main = args.input or args.qformer
    where = " with ".join(str(path) for path in (main, args.vision, args.language) if path is not None)
    state, described, labels, hub = parts.queries(main)
    if args.vision is not None:
        if any(key.startswith("visual_encoder.") for key in state):
            raise UserError(f"{main}: has a vision transformer, which was trained with it: leave out --vision.")
        state |= parts.vision(args.vision)
    if not any(key.startswith("visual_encoder.") for key in state):
        norm = state.get("ln_vision.weight")
        name = "clip_vit_L.pth" if norm is not None and len(norm) == VIT_L["width"] else "eva_vit_g.pth"
        raise UserError(f"{where}: holds no vision transformer, as where none was trained: give --vision {name}.")
    language: dict[str, Any] = {}
    if args.language is not None:
        read = parts.language(args.language)
        language = read.fields
        state = {k: x for k, x in state.items() if not parts.is_language(k) and not re.fullmatch(parts.STAGE1, k)}
        state |= read.state
    fields = _fields(args, state, described, language, hub, where)
    fields = conversion.merged(fields, args.model)
    model = models.build("blip2", **fields)
    _check_language(where, state, model)
    note = ""
    if "query_tokens" not in state:
        state = bert.completed(state, model, args.seed, str(main))
        note = " Queries, cross-attention and heads are fresh: train stage 1."
    fresh = bool(model.language) and _layer_in_front(state) is None
    if fresh:
        note += " The layer in front of the language model is fresh: train stage 2."
    flat = _arrays(args, state, model, where, labels, "params/projector/" if fresh else "-")
    packs: Mapping[str, Any] = {}
    if args.dtype in PACKED:
        fields["quantize"] = dict(match=QUANTIZED, kind=args.dtype)
        packs = models.build("blip2", **fields).loading["pack"]
    variables: dict[str, Any] = {}
    for name, make in flat.items():
        if pack := packs.get(name):
            variables |= {f"{name}/{key}": put(np.asarray(x)) for key, x in jax.jit(pack)(make()).items()}
        else:
            variables[name] = put(make())
    return _described(args, model, {"name": "blip2", **fields}, tree.unflatten(variables), note)


def _fields(
    args: argparse.Namespace,
    state: Mapping[str, Any],
    known: Mapping[str, Any],
    language: Mapping[str, Any],
    hub: tuple[Mapping[str, Any], pathlib.Path],
    where: str,
) -> dict[str, Any]:
    """Returns the arguments of models.build: a model's own where it was made here, a variant's, or what files say."""
    if known:
        model = models.build(**known)
        own = {name: dict(getattr(model, name)) for name in ("vision", "qformer", "language")}
        variant = known.get("variant", "pretrained_opt2.7b")  # the default of `build`
        fields = {"variant": variant, "embed_dim": model.embed_dim, **{k: x for k, x in own.items() if x}}
        fields |= {key: known[key] for key in ("experts", "stem_width", "classes") if key in known}
    elif args.variant is not None:
        fields = {"variant": args.variant}
    elif hub[0]:
        fields = config_json.fields_of(*hub)
    else:
        fields = file_sizes.fields_of(state, args.model, where)
    choose("variant", fields["variant"], VARIANTS)
    if language:
        fields["language"] = dict(language)
        if fields.get("qformer", {}).pop("vocab_size", 0) or "language" not in VARIANTS[fields["variant"]]:
            fields["variant"] = "pretrained_opt2.7b"  # of stage 2, whatever its language model
    size, count = args.image_size, parts.positions(state)
    if size is None and count is not None:
        vision = {**VARIANTS[fields["variant"]]["vision"], **fields.get("vision", {})}
        size = vision["patch_size"] * math.isqrt(count)
    if size is not None:
        fields["vision"] = {**fields.get("vision", {}), "image_size": size}
    words = next((x for k, x in state.items() if parts.is_language(k) and k.endswith(_WORDS)), None)
    if words is not None:
        fields["language"] = {**fields.get("language", {}), "vocab_size": words.shape[0]}
    return fields


_WORDS = ("model.decoder.embed_tokens.weight", "model.shared.weight", "model.model.embed_tokens.weight")


def _layer_in_front(state: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Returns the kernel of the layer between queries and language model."""
    return next((x for key, x in state.items() if re.fullmatch(r"(opt|t5|llm)_proj\.weight", key)), None)


def _check_language(where: str, state: Mapping[str, np.ndarray], model: Any) -> None:
    """Raises a UserError that says which language model to give, where there is none or another one."""
    if not model.language:
        return
    layer = _layer_in_front(state)
    if not any(map(parts.is_language, state)):
        name = file_sizes.MODELS.get((model.language["tower"], model.language["width"]), "such as facebook/opt-2.7b")
        raise UserError(f"{where}: holds no language model: give --language, a folder of {name}.")
    if layer is not None and layer.shape[0] != model.language["width"]:
        raise UserError(
            f"{where}: its queries were trained for a language model of width {layer.shape[0]}, and this one has "
            f"{model.language['width']}. Give the one that it was trained with, or a file of stage 1."
        )


def _arrays(
    args: argparse.Namespace,
    state: Mapping[str, np.ndarray],
    model: Any,
    where: str,
    labels: Mapping[str, np.ndarray],
    fresh: str,
) -> dict[str, Any]:
    """Returns {name: function that makes its array}, of the type that is asked for; what `fresh` begins is new.

    `labels` stay as they are: they are small, and are trained with the queries.
    """
    dtype = jnp.dtype("bfloat16" if args.dtype in PACKED else args.dtype)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, dtype) for name, leaf in conversion.shapes_of(model).items()}
    asked, theirs = shapes[POSITIONS].shape, parts.positions(state)
    shapes[POSITIONS] = jax.ShapeDtypeStruct((theirs, asked[1]), dtype)
    read = {name: leaf for name, leaf in shapes.items() if not name.startswith(fresh) and name not in labels}
    initial = functools.partial(conversion.initial_values, model, seed=args.seed)
    flat: dict[str, Any] = dict(rules.from_torch(state, table_of(model), read, where, args.allow, initial))
    flat |= {name: functools.partial(np.asarray, x) for name, x in labels.items()}
    if names := [name for name in shapes if name not in flat]:
        values = initial(names)
        flat |= {name: functools.partial(np.asarray, values[name], dtype) for name in names}
    if theirs != asked[0]:
        make = flat[POSITIONS]
        flat[POSITIONS] = lambda: np.asarray(RESIZE[POSITIONS](jnp.asarray(make(), jnp.float32), asked), dtype)
    return flat


def _described(
    args: argparse.Namespace, model: Any, fields: dict[str, Any], variables: dict[str, Any], note: str
) -> Converted:
    description, files = {"model": fields, "tasks": tasks(model)}, {}
    if args.tokenizer:
        kind = "opt" if model.language.get("tower") == "opt" else "tokenizers"
        description["tokenizer"], files = tokenizer_flag.carried(tokenizer_flag.read(args.tokenizer, kind))
    else:
        note += " Convert again with --tokenizer, such as tokenizers:FOLDER, to use it."
    return Converted(model, variables, description, files, note)


def tasks(model: Any) -> dict[str, Any]:
    """Returns how a converted model is asked: captions as LAVIS's COCO evaluation, questions as its VQA."""
    look = f"labels_for({'+'.join(model.experts) or 'none'!r})|decode|resize({model.image_size})"
    t5 = model.language.get("tower") == "t5"
    read = f"seq2seq({PROMPT})" if t5 else f"tokenize({PROMPT})"
    beams = dict(method="beam", num_beams=5, length="start" if t5 else "new")
    caption = dict(pp=f"{look}|caption_prompt('a photo of')|{read}", decode=beams | dict(max_new=ANSWER, min_new=8))
    ask = f"{look}|question_prompt(style='blip')|prompt_template('Question: {{}} Short answer:')|{read}"
    question = dict(pp=ask, decode=beams | dict(max_new=10, min_new=1, length_penalty=-1.0 if t5 else 0.0))
    if model.language:
        return dict(caption=caption, question=question)
    # LAVIS's `generate` of stage 1: no prompt, 3 beams; the image text retrieval reads 32 tokens.
    caption = dict(pp=f"{look}|caption_prompt()|tokenize(3)", decode=dict(method="beam", num_beams=3, max_new=ANSWER))
    return dict(caption=caption, match=dict(pp=look, style="blip", max_tokens=PROMPT))


def _flags(parser: argparse.ArgumentParser) -> None:
    disk = storage.on_disk
    parser.add_argument("--input", type=disk, help="folder of a repository of Hugging Face's, such as blip2-opt-2.7b")
    parser.add_argument(
        "--qformer", type=disk, help="LAVIS's file, the workdir of a stage 1 of this project, or a BERT"
    )
    parser.add_argument("--vision", type=disk, help="eva_vit_g.pth or clip_vit_L.pth, where the other file holds none")
    parser.add_argument("--language", type=disk, help="folder of an OPT, a T5, a Llama, or of a model trained here")
    parser.add_argument("--variant", help="such as pretrained_opt2.7b; the files' sizes by default")
    parser.add_argument("--image-size", type=int, help="pixels of a side; positions are interpolated to it")
    parser.add_argument("--dtype", default="float32", help=", ".join(DTYPES))
    tokenizer_flag.add(parser, "opt for an OPT, tokenizers for others")
    parser.add_argument("--seed", type=int, default=0, help="of new parameters")


COMMANDS = {"blip2": Command("Converts a BLIP-2, of one file or several.", _flags, run)}


def write_hugging_face(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the folder of transformers' Blip2ForConditionalGeneration: config.json and model.safetensors.

    Raises:
      UserError: the model has parts, or settings, that the original lacks.
    """
    fields = {key: value for key, value in description["model"].items() if key != "name"}
    model = models.build("blip2", **fields)
    if not model.language or model.experts or model.vision.get("first_norm"):
        lacks = "transformers' BLIP-2 has EVA's image encoder, a language model and no experts"
        raise conversion.unwritable(description, lacks, "orbax" if model.experts else "safetensors")
    if model.language.get("word_width") not in (None, model.language["width"]):
        # It puts the queries, which are as wide as the model, in the words' narrower rows, one behind the other.
        raise conversion.unwritable(description, "transformers' BLIP-2 misreads an OPT of narrow words", "safetensors")
    conversion.check_held(model, config_json.lost(model), description, "safetensors")
    state = to_hugging_face(conversion.to_torch({"params": variables["params"]}, table_of(model)))
    output.mkdir(parents=True, exist_ok=True)
    write.safetensors_file(output / "model.safetensors", state)
    storage.write_json(output / "config.json", config := config_json.of(model))
    if (image := config["image_token_index"]) not in config_json.IMAGE.values():
        logger.warning("%s: no text may have the last word, %d, which stands for the image there.", output, image)


FORMATS = {"blip2_hf": write_hugging_face}  # of tools.export
