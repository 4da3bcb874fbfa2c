"""config.json of transformers' PaliGemma as the fields of a model, and back.

Source: transformers 4.57.1, models/paligemma/configuration_paligemma.py and modeling_paligemma.py, and of the parts
models.hugging_face.
"""

from __future__ import annotations

import pathlib
from typing import Any

from prismer_jax.models import hugging_face, sizes
from prismer_jax.models.paligemma.model import VARIANTS, PaliGemma, build
from prismer_jax.towers.causal_lm import CausalLM
from prismer_jax.towers.vit import ViT

TOWERS = {"vision": ViT, "language": CausalLM}
USUAL = {"gemma": "pt_224", "gemma2": "3b_pt_224"}  # whose settings a model of sizes of its own has


def fields_of(config: hugging_face.Config, where: pathlib.Path) -> dict[str, Any]:
    """Returns the arguments of `build` that a config.json means: a variant, and in what the model differs from it.

    Raises:
      UserError: a value is of another type, or of a model that is not had here.
    """
    vision = hugging_face.section(config, "vision_config", where)
    hugging_face.check(vision, {"hidden_act": (None, "gelu_pytorch_tanh")}, where)
    text = hugging_face.section(config, "text_config", where)
    language = hugging_face.language(text, ("gemma", "gemma2"), where)
    kind = language.pop("tower")
    parts = {"vision": hugging_face.fields(vision, hugging_face.SIGLIP, where), "language": language}
    return sizes.nearest(parts, VARIANTS, USUAL[kind], TOWERS)


def of(model: PaliGemma) -> dict[str, Any]:
    """Returns the config.json of transformers' PaliGemmaForConditionalGeneration; `lost` says what is not in it."""
    decoder = sizes.whole(model, "language", CausalLM)
    decoder["head_dim"] = decoder["head_dim"] or decoder["width"] // decoder["heads"]
    kind = "gemma2" if decoder["post_norms"] else "gemma"
    text = hugging_face.written(decoder, hugging_face.TEXT[kind]) | dict(model_type=kind)
    text |= dict(hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
    if decoder["post_norms"]:
        caps = dict(attn_logit_softcapping="attention_cap", final_logit_softcapping="logit_cap")
        text |= {theirs: decoder[ours] or None for theirs, ours in caps.items()}
        scale = round(decoder["query_scale"] ** -2) if decoder["query_scale"] else decoder["head_dim"]
        text |= dict(sliding_window=decoder["window"] or hugging_face.WINDOW, query_pre_attn_scalar=scale)
    vision = hugging_face.written(sizes.whole(model, "vision", ViT), hugging_face.SIGLIP)
    return dict(
        model_type="paligemma",
        architectures=["PaliGemmaForConditionalGeneration"],
        vision_config=vision | dict(model_type="siglip_vision_model", vision_use_head=False),
        text_config=text,
        hidden_size=decoder["width"],
        projection_dim=decoder["width"],
        image_token_index=decoder["vocab_size"],
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def lost(model: PaliGemma) -> list[str]:
    """Returns the names of a model's settings that its config.json does not say, such as a cap of a Gemma 1."""
    return sizes.lost(model, build(**fields_of(of(model), pathlib.Path("config.json"))), TOWERS)
