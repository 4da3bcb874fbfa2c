"""What becomes of PaliGemma's files, big_vision's .npz and Hugging Face's safetensors: `tools.convert paligemma`.

Without --variant a file says its sizes: Hugging Face's by its config.json, any other by its shapes (models.sizes).
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax import models, pp, tree
from prismer_jax.errors import UserError, choose
from prismer_jax.files import storage
from prismer_jax.models import conversion, hugging_face, sizes
from prismer_jax.models.conversion import Command, Converted, Put
from prismer_jax.models.paligemma import config_json
from prismer_jax.models.paligemma.model import RESIZE, VARIANTS, PaliGemma, build
from prismer_jax.objects import codec as codecs
from prismer_jax.pp import location_tokens
from prismer_jax.weights import modules, rules, safe, shapes, tokenizer_flag, write
from prismer_jax.weights.rules import Rule, Table

TOKENIZER = "tokenizer.model"  # the file's name in an export
PROMPT, ANSWER = 64, 128  # tokens of what is asked and said at most
_OFFICIAL_WORDS = "llm/embedder/input_embedding"
HEAD = "language_model.lm_head.weight"
_PADDING = 64  # rows that Hugging Face's tables have behind the words
_HF_LAYER = "language_model.model.layers.{}"
_BLOCKS = "params/language/blocks"
_GEMMA2_NORMS = (
    ("post_attention_layernorm", "norm_attention_out"),
    ("pre_feedforward_layernorm", "norm_mlp_in"),
    ("post_feedforward_layernorm", "norm_mlp_out"),
)
# Hugging Face's names (transformers, convert_paligemma_weights_to_hf.py), old or new.
TABLE = Table(
    rules=(
        *modules.siglip("vision_tower.vision_model", "vision"),
        *modules.dense("multi_modal_projector.linear", "projector"),
        *modules.llama("language_model.model", "language"),
        *(Rule(f"{_HF_LAYER}.{key}.weight", (f"{_BLOCKS}/{name}/scale",)) for key, name in _GEMMA2_NORMS),
        Rule(HEAD, ("params/language/word_embedding",), derived=True),
    ),
    spellings=(
        (r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
)

PEFT = (  # the names of transformers 5, which an adapter's keys have
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)


def official_table(model: PaliGemma) -> Table:
    """Returns the table of big_vision's .npz (models/proj/paligemma/paligemma.py), 'params/' in front or not."""
    vision, language = model.vision, model.language
    block, attention = "params/img/Transformer/encoderblock", "MultiHeadDotProductAttention_0"
    ours, sizes = "params/vision/blocks", (("n", vision["heads"]),)
    layers = "params/llm/layers"
    parts = [f"{_BLOCKS}/{part}/kernel" for part in ("query", "key", "value")]
    heads, groups = (("n", language["heads"]),), (("n", language["kv_heads"]),)
    if language["kv_heads"] == language["heads"]:
        attend = [Rule(f"{layers}/attn/qkv_einsum/w", tuple(parts), "packed_einsum_in", sizes=heads, axis=1)]
    else:
        attend = [
            Rule(f"{layers}/attn/q_einsum/w", (parts[0],), "einsum_in", sizes=heads),
            Rule(f"{layers}/attn/kv_einsum/w", tuple(parts[1:]), "packed_einsum_in", sizes=groups, axis=1),
        ]
    norms = [("pre_attention_norm", "norm_attention"), ("pre_ffw_norm", "norm_mlp")]
    if language.get("post_norms"):
        norms = [norms[0], ("pre_ffw_norm", "norm_mlp_in")]
        norms += [("post_attention_norm", "norm_attention_out"), ("post_ffw_norm", "norm_mlp_out")]

    def pair(key: str, name: str, leaves: tuple[str, str]) -> list[Rule]:
        return [Rule(f"{key}/{leaf}", (f"{name}/{leaf}",)) for leaf in leaves]

    return Table(
        (
            Rule("params/img/embedding/kernel", ("params/vision/patch_embedding",)),
            Rule("params/img/embedding/bias", ("params/vision/patch_bias",)),
            Rule("params/img/pos_embedding", ("params/vision/position_embedding",), "leading"),
            *pair(f"{block}/LayerNorm_0", f"{ours}/norm_attention", ("scale", "bias")),
            *pair(f"{block}/LayerNorm_1", f"{ours}/norm_mlp", ("scale", "bias")),
            *pair("params/img/Transformer/encoder_norm", "params/vision/norm", ("scale", "bias")),
            *pair(f"{block}/MlpBlock_0/Dense_0", f"{ours}/mlp/up", ("kernel", "bias")),
            *pair(f"{block}/MlpBlock_0/Dense_1", f"{ours}/mlp/down", ("kernel", "bias")),
            *(
                Rule(f"{block}/{attention}/{part}/{leaf}", (f"{ours}/attention/{part}/{leaf}",), layout, sizes=sizes)
                for part in ("query", "key", "value")
                for leaf, layout in (("kernel", "heads_in"), ("bias", "heads_bias"))
            ),
            Rule(f"{block}/{attention}/out/kernel", (f"{ours}/attention/out/kernel",), "heads_out", sizes=sizes),
            Rule(f"{block}/{attention}/out/bias", (f"{ours}/attention/out/bias",)),
            *pair("params/img/head", "params/projector", ("kernel", "bias")),
            Rule("params/llm/embedder/input_embedding", ("params/language/word_embedding",)),
            *attend,
            Rule(f"{layers}/attn/attn_vec_einsum/w", (f"{_BLOCKS}/out/kernel",), "heads_out", sizes=heads),
            Rule(f"{layers}/mlp/gating_einsum", (f"{_BLOCKS}/gate/kernel", f"{_BLOCKS}/up/kernel"), "packed", axis=1),
            Rule(f"{layers}/mlp/linear", (f"{_BLOCKS}/down/kernel",)),
            *(Rule(f"{layers}/{key}/scale", (f"{_BLOCKS}/{name}/scale",)) for key, name in norms),
            Rule("params/llm/final_norm/scale", ("params/language/norm/scale",)),
        ),
        spellings=((r"^(?!params/)", "params/"),),
    )


def write_official(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes big_vision's .npz; bfloat16 stands there as two bytes of something, as in the published files.

    Raises:
      UserError: the model has experts, which the original lacks.
    """
    model = _model_of(description)
    if model.experts:
        raise conversion.unwritable(description, "the original has no experts", "orbax")
    state = conversion.to_torch({"params": variables["params"]}, official_table(model))
    output.mkdir(parents=True, exist_ok=True)
    with storage.replacing(output / "model.npz") as path, open(path, "wb") as file:
        np.savez(file, **state)


def write_hugging_face(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the folder of transformers' PaliGemmaForConditionalGeneration: config.json and model.safetensors.

    The tied head is left out, and the token of the image is the first behind the words, as in the published files.

    Raises:
      UserError: the model has experts, or settings, that the original lacks.
    """
    model = _model_of(description)
    config = config_json.of(model)
    conversion.check_held(model, config_json.lost(model), description)
    state = conversion.to_torch({"params": variables["params"]}, TABLE)
    del state[HEAD]
    output.mkdir(parents=True, exist_ok=True)
    write.safetensors_file(output / "model.safetensors", state)
    storage.write_json(output / "config.json", config)


FORMATS = {"big_vision": write_official, "paligemma_hf": write_hugging_face}  # of tools.export


def _model_of(description: Mapping[str, Any]) -> PaliGemma:
    return models.build(**description["model"])


def run(args: argparse.Namespace, put: Put) -> Converted:
    """Converts an official .npz, or a folder or file of Hugging Face's safetensors.

    A file whose positions are of another resolution than the variant's has them interpolated, and one with another
    number of words makes a model of that number. Without a variant, the file's sizes are the model's.

    Raises:
      UserError: an unknown variant or type, a tokenizer of another number of words, or a file that does not fit, or
        does not say its sizes.
    """
    dtype = choose("dtype", args.dtype, {"float32": jnp.float32, "bfloat16": jnp.bfloat16})
    if args.variant is not None:
        choose("variant", args.variant, VARIANTS)
    state, where = safe.load(args.input), str(args.input)
    official = any(_OFFICIAL_WORDS in key for key in state)
    words = _OFFICIAL_WORDS if official else "embed_tokens.weight"
    number = next((array.shape[0] for key, array in state.items() if key.endswith(words)), 0)
    published = VARIANTS[args.variant or "pt_224"]["language"]["vocab_size"]
    if not official and number == published + _PADDING:
        number = published
        heads = ("embed_tokens.weight", "lm_head.weight")
        state = {key: array[:number] if key.endswith(heads) else array for key, array in state.items()}
    fields = {"variant": args.variant} if args.variant else _fields(state, args, official, number)
    if number and number != published:
        fields = conversion.merged(fields, {"language": dict(vocab_size=number)})
    fields = dict(name="paligemma", **conversion.merged(fields, args.model))
    model = _model_of({"model": fields})
    spec, files = _tokenizer(args.tokenizer, model.vocab_size) if args.tokenizer else (f"sentencepiece:{TOKENIZER}", {})
    table = official_table(model) if official else TABLE
    leaves = {k: jax.ShapeDtypeStruct(v.shape, dtype) for k, v in conversion.shapes_of(model).items()}
    positions, note = "params/vision/position_embedding", ""
    theirs = _positions(state, model)
    asked = leaves[positions].shape
    if theirs != asked[0]:
        leaves[positions] = jax.ShapeDtypeStruct((theirs, asked[1]), dtype)
        note = f" Its {theirs} positions were interpolated to {asked[0]}."
    flat = rules.from_torch(state, table, leaves, where, args.allow)
    arrays = {name: put(make()) for name, make in flat.items()}
    if note:
        arrays[positions] = put(np.asarray(RESIZE[positions](arrays[positions], asked), dtype))
    description = {"model": fields, "tokenizer": spec, "tasks": tasks(model)}
    note = note if files else f"{note} Convert again with --tokenizer, a SentencePiece model, to use it."
    if args.mask_codec:
        codecs.load(str(args.mask_codec))
        files[codecs.FILE] = args.mask_codec
    return Converted(model, tree.unflatten(arrays), description, files, note)


def _fields(state: rules.State, args: argparse.Namespace, official: bool, number: int) -> dict[str, Any]:
    """Returns the arguments of `build` that a file's config.json says, or its shapes; `number` is that of its words.

    Raises:
      UserError: they do not say all of them, or mean a model that is not had here.
    """
    config, where = ({}, args.input) if official else hugging_face.beside(args.input, "paligemma")
    if config:  # which counts the padding of the published tables, too
        words = {"vocab_size": number} if number else {}
        text = hugging_face.section(config, "text_config", where) | words
        return config_json.fields_of({**config, "text_config": text}, where)
    known = shapes.here(state, _readable() if official else TABLE, str(args.input))
    heads = _heads(state) if official else {}
    parts = {}
    for part, read in (("vision", sizes.vit), ("language", sizes.causal_lm)):
        given = {**heads.get(part, {}), **args.model.get(part, {})}
        published = sizes.published(VARIANTS, part)
        parts[part] = sizes.of_part(read, known, part, given, published, str(args.input))
    kind = "gemma2" if f"{_BLOCKS}/norm_mlp_out/scale" in known else "gemma"
    return sizes.nearest(parts, VARIANTS, config_json.USUAL[kind], config_json.TOWERS)


def _heads(state: rules.State) -> dict[str, dict[str, int]]:
    """Returns how many heads each tower of big_vision's .npz has, where they are an axis of their own."""
    axes = {"vision": (r".*img/.*/query/kernel", 4, 2), "language": (r".*llm/.*/attn/q_einsum/w", 4, 1)}
    heads = {}
    for part, (key, number, axis) in (*axes.items(), ("language", (r".*llm/.*/attn/qkv_einsum/w", 5, 2))):
        for name, array in state.items():
            if re.fullmatch(key, name) and array.ndim == number:
                heads[part] = {"heads": array.shape[axis]}
    return heads


def _readable() -> Table:
    """Returns the rows of big_vision's .npz of both Gemmas, by which shapes are read."""
    kinds = ({}, dict(kv_heads=VARIANTS["tiny"]["language"]["heads"], post_norms=True))
    tables = [official_table(build("tiny", language=kind)) for kind in kinds]
    return Table(tuple(dict.fromkeys(rule for table in tables for rule in table.rules)), spellings=tables[0].spellings)


def _positions(state: Mapping[str, np.ndarray], model: PaliGemma) -> int:
    """Returns the number of positions of a file's images; of a file without any, the model's."""
    for key, array in state.items():
        if key.endswith(("img/pos_embedding", "embeddings.position_embedding.weight")):
            return array.shape[-2]
    return (model.image_size // model.vision["patch_size"]) ** 2


def _tokenizer(given: str, number: int) -> tuple[str, dict[str, Any]]:
    """Returns the spec and the files of --tokenizer, which for a model of `number` words is to have as many."""
    tokenizer = tokenizer_flag.read(given, "sentencepiece")
    if isinstance(tokenizer, pp.tokenizer.SentencePiece):
        return f"sentencepiece:{TOKENIZER}", {TOKENIZER: tokenizer_file(tokenizer.files()[0], number)}
    if tokenizer.vocab_size > number:
        raise UserError(f"{given}: has {tokenizer.vocab_size} words, the model {number}. Give the model's own.")
    return tokenizer_flag.carried(tokenizer)


def tokenizer_file(path: pathlib.Path, number: int) -> bytes:
    """Returns PaliGemma's SentencePiece model, or Gemma's with the pieces of places and masks behind its own.

    Raises:
      UserError: it has not so many pieces as the model has words.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give a SentencePiece model.") from None
    tokenizer = pp.tokenizer.load(f"sentencepiece:{path}")
    if tokenizer.vocab_size + len(location_tokens.PIECES) == number:
        return location_tokens.extended(data)
    if tokenizer.vocab_size != number:
        raise UserError(
            f"{path}: has {tokenizer.vocab_size} pieces, the model {number} words. Give PaliGemma's tokenizer, or "
            f"Gemma's, which has {len(location_tokens.PIECES)} pieces less and gets those of places and masks."
        )
    return data


def tasks(model: PaliGemma) -> dict[str, Any]:
    """Returns how a converted model is asked, greedily: as the mix models are; see docs/paligemma.md."""
    look, read = f"labels_for('none')|decode|stretch({model.image_size})", f"prefix_lm({PROMPT})"
    decode = dict(method="greedy", max_new=ANSWER)
    ask = "ask('caption en', wording='answer en {question}')"
    return {task: dict(pp=f"{look}|{ask}|{read}", decode=decode) for task in ("caption", "question")}


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", required=True, type=storage.on_disk, help="big_vision's .npz, or Hugging Face's folder"
    )
    parser.add_argument("--variant", help="such as pt_224, 3b_pt_448, 10b_pt_896; the file's sizes by default")
    tokenizer_flag.add(parser, "sentencepiece")
    parser.add_argument("--mask-codec", type=storage.on_disk, help="vae-oid.npz, for the masks that the model writes")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16, of what is written")


COMMANDS = {"paligemma": Command("Converts a PaliGemma 1 or 2.", _flags, run)}
