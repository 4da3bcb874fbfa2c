"""The files that a BLIP-2 is made of, whoever wrote them, under LAVIS's names: queries, vision and language models."""

from __future__ import annotations

import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from prismer_jax import checkpoint, models, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion, hugging_face, lora
from prismer_jax.models.blip2 import bert
from prismer_jax.models.blip2.table import LANGUAGE, UNUSED, of_hugging_face
from prismer_jax.weights import rules, safe

# Of stage 1 alone: what reads and writes texts, and what compares them with images.
STAGE1 = (
    r"Qformer\.cls\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\..*|itm_head\..*|temp|(vision|text)_proj\..*"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*"
)
KINDS = ("opt", "t5", "llama")  # of language models, a name of hugging_face.TEXT each


class Part(NamedTuple):
    """A state dict under LAVIS's names, and what is known of the model: arguments of models.build, or {}.

    `labels` are the variables that read experts' label maps, which LAVIS has none of, under their own names. `hub` is
    the config.json of a repository of Hugging Face's, and where it is.
    """

    state: dict[str, np.ndarray]
    fields: dict[str, Any]
    labels: Mapping[str, np.ndarray] = types.MappingProxyType({})
    hub: tuple[Mapping[str, Any], pathlib.Path] = ({}, pathlib.Path())


def queries(path: pathlib.Path) -> Part:
    """Reads a file of LAVIS's, a repository of Hugging Face's, or a BLIP-2 that was trained or converted here.

    Or a BERT, which a Q-Former begins as: `bert.completed` adds what it lacks, its queries among that.

    Raises:
      UserError: it is none of these.
    """
    if _is_ours(path):
        variables, fields = _opened(path)
        if fields.get("name") != "blip2":
            raise UserError(f"{path}: holds no BLIP-2, but {fields.get('name', 'a model without a name')}.")
        table = conversion.table_of("blip2", models.build(**fields))
        flat = tree.flatten(variables)
        labels = {name: x for name, x in flat.items() if name.split("/")[1] == "labels"}
        rest = tree.unflatten({name: x for name, x in flat.items() if name not in labels})
        return Part(conversion.to_torch({"params": rest["params"]}, table), fields, labels)
    state = safe.load(path)
    if any(key.endswith("language_projection.weight") for key in state):
        endings = {"t5": "language_model.shared.weight", "llm": "language_model.model.embed_tokens.weight"}
        names = (name for name, ending in endings.items() if any(key.endswith(ending) for key in state))
        return Part(of_hugging_face(state, next(names, "opt")), {}, hub=hugging_face.beside(path, "blip-2"))
    return Part(dict(state) if "query_tokens" in state else bert.read(state, str(path)), {})


def vision(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads eva_vit_g.pth, clip_vit_L.pth or OpenAI's ViT-L-14.pt, without what BLIP-2 does not use of it."""
    state: Mapping[str, np.ndarray] = safe.load(path)
    if "visual.class_embedding" in state:  # OpenAI's, beside an encoder of texts
        state = {key.removeprefix("visual."): x for key, x in state.items() if key.startswith("visual.")}
    used = {key: array for key, array in state.items() if not re.fullmatch(UNUSED, key)}
    return {f"visual_encoder.{key.removeprefix('visual_encoder.')}": array for key, array in used.items()}


def positions(state: Mapping[str, np.ndarray]) -> int | None:
    """Returns how many positions a vision transformer of EVA's or CLIP's has, its class token's among them."""
    table = state.get("visual_encoder.pos_embed", state.get("visual_encoder.positional_embedding"))
    return None if table is None else table.shape[-2]


def language(path: pathlib.Path) -> Part:
    """Reads a folder of an OPT, a T5 or a Llama, or the language model of a model that was trained here.

    Raises:
      UserError: it is none of these.
    """
    if _is_ours(path):
        variables, model = _opened(path)
        if (own := getattr(models.build(**model), "language", None)) is None:
            raise UserError(f"{path}: its model has no language model of its own. Give a nanoVLM, PaliGemma or BLIP-2.")
        fields = {"tower": "llama", **dict(own)}
        flat = {k: x for k, x in tree.flatten({"params": variables["params"]}).items() if "/language/" in k}
        return Part(rules.to_torch(flat, rules.Table(LANGUAGE[fields["tower"]][1])), fields)
    where = path / "config.json"
    fields = hugging_face.language(hugging_face.read(where), KINDS, where)
    kind = fields["tower"]
    name = LANGUAGE[kind][0]
    state = {
        re.sub(r"^decoder\.", "model.decoder.", key) if kind == "opt" else key: x for key, x in safe.load(path).items()
    }
    if kind == "llama" and "lm_head.weight" in state:
        raise UserError(f"{path}: its head is not tied to its embeddings, which BLIP-2 needs of a Llama; SmolLM2's is.")
    return Part({f"{name}_model.{key}": array for key, array in state.items()}, fields)


def is_language(key: str) -> bool:
    """Returns whether a key is of a language model."""
    return key.startswith(tuple(f"{name}_model." for name, _ in LANGUAGE.values()))


def _opened(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables and the fields of a model of this project, with adapters in its kernels, none packed."""
    variables, description = checkpoint.load_export(path)
    return lora.plain(variables, description["model"])


def _is_ours(path: pathlib.Path) -> bool:
    try:
        return bool(checkpoint.find(path)) and "model" in checkpoint.description(path)
    except UserError:
        return False
