"""The sizes of a BLIP-2 of which only arrays under LAVIS's names are there: a published model's, or its shapes'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prismer_jax.models import sizes
from prismer_jax.models.blip2 import bert
from prismer_jax.models.blip2.base import Blip2Base
from prismer_jax.models.blip2.model import VARIANTS
from prismer_jax.models.blip2.stage2 import tower
from prismer_jax.models.blip2.table import LANGUAGE, READABLE
from prismer_jax.towers.qformer import QFormer
from prismer_jax.towers.vit import ViT
from prismer_jax.weights import shapes

# The language model that a width in front of it means.
MODELS = {
    ("opt", 2560): "facebook/opt-2.7b",
    ("opt", 4096): "facebook/opt-6.7b",
    ("t5", 2048): "google/flan-t5-xl",
    ("t5", 4096): "google/flan-t5-xxl",
}
_READ: dict[str, sizes.Read] = {"opt": sizes.opt, "t5": sizes.t5, "llama": sizes.causal_lm}
_POSITION_IDS = "Qformer.bert.embeddings.position_ids"


def fields_of(state: Mapping[str, np.ndarray], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the arguments of models.build: a variant, and in what the parts that are there differ from it.

    Args:
      state: under LAVIS's names; parts that are missing are those of the variant.
      given: the fields that the user gave.
      where: names the file in errors.

    Raises:
      UserError: nothing says how many heads a part has.
    """
    here = shapes.here(state, READABLE, where)
    clip = "params/vision/norm_first/scale" in here
    usual = "pretrained" if bert.WORDS in state else f"pretrained_{_language_of(state)}"
    if clip:  # as OpenAI's image encoder has a norm in front
        usual = "pretrained_vitL" if bert.WORDS in state else "pretrained_flant5xl_vitL"
    kind = next(
        (kind for kind, (name, _) in LANGUAGE.items() if any(k.startswith(f"{name}_model.") for k in state)), ""
    )
    readers: dict[str, sizes.Read] = {"vision": sizes.vit, "qformer": sizes.qformer}
    towers: dict[str, Any] = {"vision": ViT, "qformer": QFormer}
    if kind:
        readers["language"], towers["language"] = _READ[kind], tower(kind)
    parts: dict[str, dict[str, Any]] = {}
    for part, read in readers.items():
        published = sizes.published(VARIANTS, part)
        if part == "vision":
            published = [one for one in published if bool(one.get("first_norm")) == clip]
        if part == "language":
            published = [one for one in published if one["tower"] == kind]
        if own := sizes.of_part(read, here, part, given.get(part, {}), published, where):
            parts[part] = own | ({"tower": kind} if part == "language" else {})
    if "qformer" in parts and _POSITION_IDS in state:
        parts["qformer"].setdefault("max_positions", state[_POSITION_IDS].shape[-1])
    fields = sizes.nearest(parts, {usual: VARIANTS[usual]}, usual, towers)
    compared = here.get("params/project_image/kernel", (0, Blip2Base.embed_dim))[1]
    return fields | ({"embed_dim": compared} if compared != Blip2Base.embed_dim else {})


def _language_of(state: Mapping[str, Any]) -> str:
    """Returns the language model's name in VARIANTS that a file's layer in front of it was made for."""
    for kind in ("opt", "t5"):
        if (layer := state.get(f"{kind}_proj.weight")) is not None:
            name = MODELS.get((kind, layer.shape[0]), "").rpartition("/")[2].replace("-", "")
            return name or ("opt2.7b" if kind == "opt" else "flant5xl")
    return "opt2.7b"
