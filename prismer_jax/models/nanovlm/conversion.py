"""What becomes of nanoVLM's files, and of those that a fresh nanoVLM starts from: `tools.convert nanovlm`."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import pathlib
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers

from prismer_jax import datasets, models, tree
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.models import conversion, hugging_face, lora
from prismer_jax.models.conversion import Command, Converted, Put
from prismer_jax.models.nanovlm import config_json, projector
from prismer_jax.models.nanovlm.model import RESIZE, NanoVLM
from prismer_jax.pp import chat, fast_tokenizers
from prismer_jax.towers.causal_lm import CausalLM, inverse_frequencies
from prismer_jax.weights import modules, onnx, rules, safe, shapes, tokenizer_flag
from prismer_jax.weights.gguf import Llama
from prismer_jax.weights.rules import Rule, Table
from prismer_jax.weights.write import safetensors_file

_VISION, _BLOCK = "vision_encoder", "vision_encoder.blocks.{}"
_LAYER = "decoder.blocks.{}"
_PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
PROMPT, ANSWER = 256, 300  # tokens of what is asked and said at most; the latter as generate.py has it
HEAD, WORDS, FREQUENCIES = "decoder.head.weight", "decoder.token_embedding.weight", "decoder.rotary_embd.inv_freq"

logger = logging.getLogger(__name__)


def _packed(key: str, name: str) -> list[Rule]:
    """Query, key and value in one Linear."""
    names = [f"params/{name}/{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{key}.weight", tuple(f"{n}/kernel" for n in names), "dense"),
        Rule(f"{key}.bias", tuple(f"{n}/bias" for n in names)),
    ]


TABLE = Table(
    rules=(
        Rule(f"{_VISION}.patch_embedding.position_embedding", ("params/vision/position_embedding",), "leading"),
        Rule(f"{_VISION}.patch_embedding.conv.weight", ("params/vision/patch_embedding",), "conv"),
        Rule(f"{_VISION}.patch_embedding.conv.bias", ("params/vision/patch_bias",)),
        *modules.norm(f"{_BLOCK}.ln1", "vision/blocks/norm_attention"),
        *_packed(f"{_BLOCK}.attn.qkv_proj", "vision/blocks/attention"),
        *modules.dense(f"{_BLOCK}.attn.out_proj", "vision/blocks/attention/out"),
        *modules.norm(f"{_BLOCK}.ln2", "vision/blocks/norm_mlp"),
        *modules.mlp(f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc2", "vision/blocks/mlp"),
        *modules.norm(f"{_VISION}.layer_norm", "vision/norm"),
        modules.kernel("MP.proj", "projector"),
        Rule(HEAD, ("params/language/word_embedding",)),
        Rule(WORDS, ("params/language/word_embedding",), derived=True),
        Rule(f"{_LAYER}.norm1.weight", ("params/language/blocks/norm_attention/scale",)),
        *(modules.kernel(f"{_LAYER}.attn.{theirs}", f"language/blocks/{ours}") for theirs, ours in _PROJECTIONS),
        Rule(f"{_LAYER}.norm2.weight", ("params/language/blocks/norm_mlp/scale",)),
        *(modules.kernel(f"{_LAYER}.mlp.{part}_proj", f"language/blocks/{part}") for part in ("gate", "up", "down")),
        Rule("decoder.norm.weight", ("params/language/norm/scale",)),
    ),
    ignored=(FREQUENCIES.replace(".", r"\."),),
)
SIGLIP = Table(
    tuple(modules.siglip("vision_model", "vision")), ignored=(r"text_model\..*", r"vision_model\.head\..*", r"logit_.*")
)
DINOV2 = Table(tuple(modules.dinov2("vision")))
LLAMA = Table(
    tuple(modules.llama("model", "language")),
    ignored=(r"lm_head\.weight", r"model\.layers\.\d+\.self_attn\.rotary_emb.*"),
)


def write(output: pathlib.Path, variables: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes config.json and model.safetensors into a folder, as the original's save_pretrained does.

    The tied table of words stands under HEAD alone, which the header says, and the rotary frequencies are there.

    Raises:
      UserError: the model is of no size or kind that the original can have.
    """
    model = models.build(**description["model"])
    conversion.check_held(model, config_json.lost(model), description)
    language, base = model.language, model.language.get("rope_base", CausalLM.rope_base)
    frequencies = inverse_frequencies(language["width"] // language["heads"], base)
    state = {**conversion.to_torch({"params": variables["params"]}, TABLE), FREQUENCIES: frequencies}
    del state[WORDS]
    if config := description.get("nanovlm"):  # of what was converted, in which the user may have changed a field
        own = {**config_json.sizes_of(model), "lm_base_vocab_size": model.image_token}
        config = {key: value if own.get(key, value) == value else own[key] for key, value in config.items()}
    else:
        config = config_json.of(model, description.get("tasks", {}))
        said = "%s: lm_tokenizer is %s, nanoVLM's default: write there what the model was trained with, here %s."
        logger.warning(said, output / "config.json", config["lm_tokenizer"], description.get("tokenizer"))
    output.mkdir(parents=True, exist_ok=True)
    safetensors_file(output / "model.safetensors", state, {WORDS: HEAD})
    storage.write(output / "config.json", json.dumps(config, indent=4))


FORMATS = {"nanovlm": write}  # of tools.export
# Of tools.push: what the hub shows of a model.
CARD = """---
library_name: nanovlm
pipeline_tag: image-text-to-text
tags:
- vision-language
- jax
---

# {name}

A nanoVLM of {parameters:,} parameters, trained or converted with prismer_jax, in the layout of the original.

```python
from models.vision_language_model import VisionLanguageModel

model = VisionLanguageModel.from_pretrained("{repo}")
```
"""


def from_checkpoint(args: argparse.Namespace, put: Put) -> Converted:
    """Returns the model of a folder that the original's save_pretrained wrote, of any generation.

    A file without a config.json says its sizes by its shapes, see models.sizes.

    Raises:
      UserError: the files do not say all of them, or do not fit.
    """
    folder = args.input if args.input.is_dir() else args.input.parent
    path = folder / "config.json"
    config = hugging_face.read(path) if args.input.is_dir() or path.is_file() else {}
    if not args.input.is_dir() and not config.keys() >= set(config_json.VISION.values()):
        config = {}  # of something else that lies there
    state = safe.load(args.input)
    if config:
        fields = config_json.fields_of(config, path)
    else:
        fields = config_json.fields_by_shapes(shapes.here(state, TABLE, str(args.input)), args.model, args.input)
    model = models.build("nanovlm", **conversion.merged(fields, args.model))
    variables = conversion.from_torch(state, model, TABLE, str(args.input), allow=args.allow, put=put)
    return _described(args, model, variables, config, *_tokenizer(args))


def from_backbones(args: argparse.Namespace, put: Put) -> Converted:
    """Returns an untrained nanoVLM that starts from an image encoder and a SmolLM2, with a fresh projector."""
    vision, vision_table, vision_fields = encoder(args.vision, args.image_size)
    if args.language.suffix == ".gguf":
        language: rules.State = Llama(args.language)
        language_config = language.config
    else:
        language, language_config = safe.load(args.language), hugging_face.read(args.language / "config.json")
    tower = config_json.language_fields(language_config, args.language)
    number = tower["vocab_size"]
    fields = {
        "vision": vision_fields,
        "language": tower | {"vocab_size": number + args.extra_tokens},
        "shuffle": args.shuffle,
        "image_token": number if args.extra_tokens else None,
    }
    model = models.build("nanovlm", **conversion.merged(fields, args.model))
    if model.experts or not lora.is_plain(args.model):
        raise UserError("A new nanoVLM has no experts, adapters or packed kernels: give them to its training.")
    leaves = conversion.shapes_of(model)
    fresh = conversion.initial_values(model, ["params/projector/kernel", "params/language/word_embedding"], args.seed)
    rest = np.asarray(fresh["params/language/word_embedding"])[number:]  # normal, 0.02, as in the reference
    words = "model.embed_tokens.weight"
    state = ChainMap({words: _extended(language[words], rest)}, language)
    flat = {}
    for part, table, own_state, where in (
        ("vision", vision_table, vision, args.vision),
        ("language", LLAMA, state, args.language),
    ):
        own = {name: leaf for name, leaf in leaves.items() if name.startswith(f"params/{part}/")}
        flat |= rules.from_torch(own_state, table, own, str(where), args.allow)
    flat["params/projector/kernel"] = lambda: np.asarray(fresh["params/projector/kernel"])
    spec, files = _tokenizer(args, language)
    if args.match_words is not None:
        if "tokenizer.json" not in files:
            raise UserError("--match-words needs the words' ids: give --tokenizer, a folder with tokenizer.json.")
        tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        own = {name: leaf() for name, leaf in flat.items() if name.startswith("params/vision/")}
        source = datasets.load("lists", path=args.match_words, task="caption")
        fit = projector.fitted(model, own, flat["params/language/word_embedding"](), tokenizer, source)
        flat |= {name: functools.partial(np.asarray, x) for name, x in fit.items()}
    variables = {"params": tree.unflatten({name: put(make()) for name, make in flat.items()})["params"]}
    return _described(args, model, variables, {}, spec, files)


def encoder(path: pathlib.Path, size: int | None) -> tuple[rules.State, Table, dict[str, Any]]:
    """Returns the state dict, table and fields of an image encoder: a SigLIP's folder, or a DINOv2's .onnx.

    Args:
      size: pixels of a side of its images, its own by default; the positions are interpolated to it.
    """
    if path.suffix == ".onnx":
        state: rules.State = onnx.Dinov2(path)
        table, fields = DINOV2, config_json.vision_fields(state.config, path)
        fields |= {"activation": "gelu", "class_token": True, "layer_scale": 1.0}
        keys = [f"embeddings.patch_embeddings.projection.{name}" for name in ("weight", "bias")]
        state = ChainMap(dict(zip(keys, onnx.normalized(*map(state.get, keys)), strict=True)), state)
    else:
        state, table = safe.load(path), SIGLIP
        fields = config_json.vision_fields(hugging_face.read(path / "config.json"), path / "config.json")
    if size is None or size == fields["image_size"]:
        return state, table, fields
    if size % fields["patch_size"]:
        raise UserError(f"--image-size {size}: not a multiple of the {fields['patch_size']} pixels of a patch.")
    fields["image_size"], name = size, "params/vision/position_embedding"
    key = next(rule.key for rule in table.rules if rule.names == (name,))
    old, number = np.asarray(state[key]), (size // fields["patch_size"]) ** 2 + fields.get("class_token", False)
    new = np.asarray(RESIZE[name](old.reshape(-1, old.shape[-1]), (number, old.shape[-1])))
    return ChainMap({key: new.reshape(*old.shape[:-2], *new.shape)}, state), table, fields


def _extended(words: Any, rest: np.ndarray) -> np.ndarray:
    """Returns a table of words with further rows."""
    return np.concatenate([np.asarray(words, rest.dtype), rest]) if len(rest) else words


def _tokenizer(args: argparse.Namespace, language: Any = None) -> tuple[str, dict[str, bytes]]:
    """Returns the spec and {name: content} of --tokenizer, or of a GGUF file, which has its own; no files without."""
    if args.tokenizer is not None:
        spec, paths = tokenizer_flag.carried(tokenizer_flag.read(args.tokenizer, "tokenizers"))
        return spec, {name: path.read_bytes() for name, path in paths.items()}
    own = language.tokenizer_files() if isinstance(language, Llama) else {}
    return "tokenizers:.", {name: text.encode() for name, text in own.items()}


def _described(
    args: argparse.Namespace,
    model: NanoVLM,
    variables: dict[str, Any],
    config: dict[str, Any],
    spec: str,
    files: dict[str, bytes],
) -> Converted:
    fields = {"vision": dict(model.vision), "language": dict(model.language)}
    fields |= dict(shuffle=model.shuffle, image_token=model.image_token)
    description = {
        "model": {"name": "nanovlm", **args.model, **fields},
        "tokenizer": spec,
        "tasks": tasks(model, config),
    }
    if config:
        description["nanovlm"] = config  # so that an export writes it again
    extra = chat.EXTRA_TOKENS[: model.vocab_size - model.image_token] if model.image_token is not None else ()
    if "tokenizer.json" in files:
        files["tokenizer.json"] = fast_tokenizers.extended(files["tokenizer.json"].decode(), extra).encode()
    note = (
        ""
        if files
        else " Convert again with --tokenizer, a folder with the language model's tokenizer.json, to use it."
    )
    return Converted(model, variables, description, files, note)


def tasks(model: NanoVLM, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how a converted model is asked: as the original's generate.py does, but greedily.

    Several captions are sampled as there, with its filter and its defaults (models/vision_language_model.py).

    Args:
      config: the config.json of nanoVLM; {} for a new model, which is asked as HEAD's are.
    """
    size, tokens = model.image_size, model.image_tokens
    if (config and config_json.generation_of(config) != "head") or model.image_token is None:
        length = config.get("lm_max_length", PROMPT) + tokens
        look, write = f"tiles({size}, method='bilinear')", f"chat({length}, {tokens}, style='answer')"
    else:
        longest, enlarge = config.get("max_img_size", 4 * size), config.get("resize_to_max_side_len", False)
        room = 1 + (longest // size) ** 2 if longest > size else 1
        look = f"tiles({size}, {longest}, enlarge={enlarge}, reference={bool(config)})"
        write = f"chat({room * (tokens + 1) + PROMPT}, {tokens})"
    # Beams that count no prompt: it has as many columns as its batch has need of.
    decode = dict(method="greedy", max_new=ANSWER, prompt_length=0)
    ask = f"labels_for('none')|decode|{look}|ask('What is this?')|{write}"
    sample = dict(top_k=50, top_p=0.9, temperature=0.5, filtering="nanovlm")
    return {task: {"pp": ask, "decode": decode, "sample": sample} for task in ("caption", "question")}


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=storage.on_disk, help="folder of config.json and model.safetensors, or a file")
    parser.add_argument("--vision", type=storage.on_disk, help="folder of a SigLIP or a DINOv2's .onnx, to start from")
    parser.add_argument("--language", type=storage.on_disk, help="folder of a SmolLM2, or its .gguf, to start from")
    tokenizer_flag.add(parser, "tokenizers")
    parser.add_argument("--shuffle", type=int, default=4, help="side of the blocks of patches that become one token")
    parser.add_argument("--extra-tokens", type=int, default=66, help="new words behind the language model's own")
    parser.add_argument("--image-size", type=int, help="pixels of a side of a new model's images; the encoder's own")
    parser.add_argument(
        "--match-words",
        type=storage.on_disk,
        metavar="LIST",
        help="a list of photos with captions, as COCO's: fit the fresh projector so that it says their words",
    )
    parser.add_argument("--seed", type=int, default=0, help="of new parameters")


def run(args: argparse.Namespace, put: Put) -> Converted:
    """Converts a checkpoint (--input), or starts a model from backbones (--vision and --language).

    Raises:
      UserError: the flags are neither.
    """
    if args.input is not None and args.vision is None and args.language is None:
        return from_checkpoint(args, put)
    if args.input is None and args.vision is not None and args.language is not None:
        return from_backbones(args, put)
    raise UserError("Give --input, a nanoVLM, or --vision and --language, what a new one starts from.")


COMMANDS = {"nanovlm": Command("Converts a nanoVLM, or makes one from an image encoder and a SmolLM2.", _flags, run)}
