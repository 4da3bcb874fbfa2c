"""A Prismer that starts from the public backbones: CLIP's image encoder and RoBERTa, everything else fresh.

What is taken over is what the reference takes over (NVlabs/prismer, model/modules/vit.py: load_encoder, and roberta.py:
load_decoder): the image encoder's patches, positions, blocks and norms, but not the class token, its position and the
projection; RoBERTa's embeddings, layers and language-model head, but not the pooler. Stems, instance embedding,
adaptors, resampler, cross-attention and the decoder's last layer (`output_layer`: no layer of RoBERTa is copied to it)
keep the model's initial values, drawn as the reference draws them.

Files: OpenAI's CLIP ViT-B/16 and ViT-L/14@336px, as TorchScript archives or state dicts; OpenCLIP's ViT-H/14; RoBERTa
base and large of transformers.

ViT-H/14 (LAION's, for prismer_huge) was trained with 16 heads of 80 and the exact GELU (mlfoundations/open_clip,
src/open_clip/model_configs/ViT-H-14.json). The reference runs it with 20 heads of 64 and QuickGELU, and so does `huge`:
its weights see another activation and other heads than in their training. No official checkpoint has that size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike
from prismer_jax.models import conversion
from prismer_jax.models.prismer import table as official
from prismer_jax.models.prismer.model import VARIANTS, Prismer
from prismer_jax.weights import modules, rules, safe
from prismer_jax.weights.rules import Rule

_POSITIONS, _PATCHES = "visual.positional_embedding", "visual.conv1.weight"
_BLOCK, _LAYER = "visual.transformer.resblocks.{}", "roberta.encoder.layer.{}"
_EMBEDDINGS = "roberta.embeddings"

VISION = rules.Table(  # openai/CLIP, clip/model.py: VisionTransformer; OpenCLIP has the same keys
    rules=(
        Rule(_POSITIONS, ("params/encoder/position_embedding",)),
        Rule(_PATCHES, ("params/encoder/patch_embedding",), "conv"),
        *modules.clip_block(_BLOCK, "encoder/blocks"),
        *modules.norm("visual.ln_pre", "encoder/norm_pre"),
        *modules.norm("visual.ln_post", "encoder/norm_post"),
    ),
    ignored=(r"(?!visual\.).*", r"visual\.class_embedding", r"visual\.proj"),
)

TEXT = rules.Table(  # transformers, models/roberta/modeling_roberta.py: RobertaForMaskedLM
    rules=(
        *modules.roberta_embeddings(_EMBEDDINGS, "decoder"),
        *modules.roberta_layer(_LAYER, "decoder/layers"),
        *modules.roberta_head("lm_head", "decoder"),
    ),
    constants=modules.position_ids(_EMBEDDINGS, "decoder"),
    spellings=modules.OLD_NORMS,
    ignored=(r"roberta\.pooler\..*",),
)


def initialize(
    model: Prismer,
    vision: PathLike | None = None,
    text: PathLike | None = None,
    seed: int = 0,
    *,
    allow: Sequence[str] = (),
    put: Callable[[Any], Any] = np.asarray,
) -> dict[str, Any]:
    """Returns the model's variables {'params', 'batch_stats', 'tables'}, with those of the backbones where given.

    Args:
      vision: a file of CLIP's; its positions are resized to the model's resolution.
      text: a file of RoBERTa's.
      seed: of all that is fresh.
      allow: regexes of keys that may be missing, unexpected or of another shape (see rules.from_torch).
      put: where each array is put as soon as it is made.

    Raises:
      UserError: a file cannot be read, or is of another size or architecture.
    """
    flat: dict[str, Any] = {}
    shapes = conversion.shapes_of(model)
    for path, table, read in ((vision, VISION, _vision), (text, TEXT, _text)):
        if path is not None:
            expected = {name: shapes[name] for rule in table.rules for name in rule.names}
            state = read(table.spell(safe.load(path), str(path)), model, str(path))
            fresh = lambda names: conversion.initial_values(model, names, seed)  # noqa: E731
            arrays = rules.from_torch(state, table, expected, str(path), allow, fresh)
            flat |= {name: put(make()) for name, make in arrays.items()}
    variables = jax.eval_shape(model.init_variables, jax.random.key(seed))
    rest = [name for name in tree.flatten(variables) if name not in flat]
    flat |= {name: put(array) for name, array in conversion.initial_values(model, rest, seed).items()}
    return {"batch_stats": {}, "tables": {}} | tree.unflatten(flat)


def _vision(state: rules.State, model: Prismer, where: str) -> rules.State:
    patches = state.get(_PATCHES)
    if patches is None or patches.ndim != 4:
        raise UserError(f"{where}: is no image encoder of CLIP: it lacks {_PATCHES}. Use OpenAI's or OpenCLIP's file.")
    sizes = {"patch_size": patches.shape[3], "width": patches.shape[0], "layers": official.count(state, _BLOCK)}
    _check(sizes, {key: getattr(model, key) for key in sizes}, lambda fields: fields, where)
    return official.resized(state, _POSITIONS, (model.image_size // model.patch_size) ** 2, skip=1)


def _text(state: rules.State, model: Prismer, where: str) -> rules.State:
    words = state.get(f"{_EMBEDDINGS}.word_embeddings.weight")
    if words is None or words.ndim != 2:
        raise UserError(
            f"{where}: is no RoBERTa: it lacks {_EMBEDDINGS}.word_embeddings.weight. Use the file of roberta-base or "
            "roberta-large."
        )
    sizes = {"width": words.shape[1], "layers": official.count(state, _LAYER)}
    _check(sizes, {key: model.decoder[key] for key in sizes}, lambda fields: fields["decoder"], where)
    return state


def _check(
    saved: Mapping[str, int], expected: Mapping[str, int], part: Callable[[Mapping[str, Any]], Any], where: str
) -> None:
    """Raises a UserError that says in one line which variants a file of another size is for."""
    if saved != expected:
        fitting = [name for name, fields in VARIANTS.items() if all(part(fields)[key] == saved[key] for key in saved)]
        wrong = [key for key in saved if saved[key] != expected[key]]
        sizes = ", ".join(f"{key} {saved[key]} instead of {expected[key]}" for key in wrong)
        remedy = " or ".join(f"--variant prismer_{name}" for name in fitting) or "another file: no variant has its size"
        raise UserError(f"{where}: is of another size than the model ({sizes}); use {remedy}.")
