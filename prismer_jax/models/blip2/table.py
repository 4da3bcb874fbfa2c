"""How LAVIS names and lays out the parameters of BLIP-2, and how Hugging Face does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prismer_jax.weights import modules
from prismer_jax.weights.rules import Rule, Table

_BLOCK, _OURS = "visual_encoder.blocks.{}", "vision/blocks"
_LAYER = "Qformer.bert.encoder.layer.{}"
EMBEDDINGS, HEAD = "Qformer.bert.embeddings", "Qformer.cls.predictions"
_WORDS = "params/qformer/word_embedding"

VISION = (
    Rule("visual_encoder.cls_token", ("params/vision/class_embedding",), "token"),
    Rule("visual_encoder.pos_embed", ("params/vision/position_embedding",), "leading"),
    Rule("visual_encoder.patch_embed.proj.weight", ("params/vision/patch_embedding",), "conv"),
    Rule("visual_encoder.patch_embed.proj.bias", ("params/vision/patch_bias",)),
    *modules.norm(f"{_BLOCK}.norm1", f"{_OURS}/norm_attention"),
    Rule(f"{_BLOCK}.attn.q_bias", (f"params/{_OURS}/attention/query/bias",)),
    Rule(f"{_BLOCK}.attn.v_bias", (f"params/{_OURS}/attention/value/bias",)),
    Rule(
        f"{_BLOCK}.attn.qkv.weight",
        tuple(f"params/{_OURS}/attention/{part}/kernel" for part in ("query", "key", "value")),
        "dense",
    ),
    *modules.dense(f"{_BLOCK}.attn.proj", f"{_OURS}/attention/out"),
    *modules.norm(f"{_BLOCK}.norm2", f"{_OURS}/norm_mlp"),
    *modules.mlp(f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc2", f"{_OURS}/mlp"),
)
CLIP = (
    Rule("visual_encoder.class_embedding", ("params/vision/class_embedding",)),
    Rule("visual_encoder.positional_embedding", ("params/vision/position_embedding",)),
    Rule("visual_encoder.conv1.weight", ("params/vision/patch_embedding",), "conv"),
    *modules.norm("visual_encoder.ln_pre", "vision/norm_first"),
    *modules.clip_block("visual_encoder.transformer.resblocks.{}", "vision/blocks"),
)
# Of the files of vision transformers, what BLIP-2 leaves out: the last of EVA's 40 blocks and of CLIP's 24, and what is
# behind them.
UNUSED = r"(visual_encoder\.)?((blocks\.39|transformer\.resblocks\.23|norm|fc_norm|head|ln_post)\..*|proj)"
HEADS = (
    *modules.norm("ln_vision", "norm_vision"),
    Rule("temp", ("params/temperature",)),
    *modules.dense("vision_proj", "project_image"),
    *modules.dense("text_proj", "project_text"),
    *modules.dense("itm_head", "match_head"),
)


def _layer(number: int, every: int) -> list[Rule]:
    """Returns the rows of the Q-Former's layers number, number + every, ..."""
    name = f"qformer/blocks/layer_{number}"
    layer_rules = [
        *modules.roberta_attention(f"{_LAYER}.attention", f"{name}/self_attention"),
        *modules.norm(f"{_LAYER}.attention.output.LayerNorm", f"{name}/norm_self"),
        *modules.roberta_attention(f"{_LAYER}.crossattention", f"{name}/cross_attention"),
        *modules.norm(f"{_LAYER}.crossattention.output.LayerNorm", f"{name}/norm_cross"),
    ]
    for ending in ("", "_query"):
        first, second = f"{_LAYER}.intermediate{ending}.dense", f"{_LAYER}.output{ending}"
        layer_rules += modules.mlp(first, f"{second}.dense", f"{name}/mlp{ending}")
        layer_rules += modules.norm(f"{second}.LayerNorm", f"{name}/norm_mlp{ending}")
    return [Rule(rule.key, rule.names, rule.layout, first=number, step=every) for rule in layer_rules]


def _qformer(every: int) -> list[Rule]:
    return [
        Rule("query_tokens", ("params/qformer/query_tokens",), "leading"),
        Rule(f"{EMBEDDINGS}.word_embeddings.weight", (_WORDS,)),
        Rule(f"{EMBEDDINGS}.position_embeddings.weight", ("params/qformer/position_embedding",)),
        *modules.norm(f"{EMBEDDINGS}.LayerNorm", "qformer/norm_embedding"),
        *(rule for number in range(every) for rule in _layer(number, every)),
        Rule(f"{HEAD}.bias", ("params/qformer/head_bias",)),
        *modules.dense(f"{HEAD}.transform.dense", "qformer/head"),
        *modules.norm(f"{HEAD}.transform.LayerNorm", "qformer/norm_head"),
        Rule(f"{HEAD}.decoder.weight", (_WORDS,), derived=True),
        Rule(f"{HEAD}.decoder.bias", ("params/qformer/head_bias",), derived=True),
    ]


# Of each language model: what LAVIS calls it and the layer in front of it, its rows, and keys without use here.
LANGUAGE: dict[str, tuple[str, tuple[Rule, ...]]] = {
    "opt": ("opt", tuple(modules.opt("opt_model", "language"))),
    "t5": ("t5", tuple(modules.t5("t5_model.", "language"))),
    "llama": ("llm", (*modules.llama("llm_model.model", "language"),)),
}


def table(model: Any) -> Table:
    """Returns the table of LAVIS's names for a model of `build`, of all its parts."""
    every, most = model.qformer.get("cross_every", 2), model.qformer.get("max_positions", 512)
    all_rules = [*(CLIP if model.vision.get("first_norm") else VISION), *HEADS, *_qformer(every)]
    if model.language:
        name, own = LANGUAGE[model.language["tower"]]
        all_rules += [*modules.dense(f"{name}_proj", "projector"), *own]
    positions = lambda shape: np.arange(most, dtype=np.int64)[None]  # noqa: E731
    return Table(tuple(all_rules), constants={f"{EMBEDDINGS}.position_ids": ("params/qformer/query_tokens", positions)})


# The rows of all kinds of models, by which shapes are read: see models.sizes.
READABLE = Table(
    (
        *(*VISION, *CLIP, *HEADS, *_qformer(1)),
        *(rule for name, own in LANGUAGE.values() for rule in (*modules.dense(f"{name}_proj", "projector"), *own)),
    )
)


# Hugging Face's names from LAVIS's (transformers, convert_blip_2_original_to_pytorch.py), the first that fits.
_TO_HUGGING_FACE = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.(encoder\.layer\.\d+\.(?:cross)?attention)\.self\.", r"qformer.\1.attention."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"^(opt|t5|llm)_proj\.", "language_projection."),
    (r"^(opt|t5|llm)_model\.", "language_model."),
)
_FROM_HUGGING_FACE = (
    (r"^model\.(?=vision_model|qformer|language_)", ""),
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks."),
    (r"^vision_model\.post_layernorm\.", "ln_vision."),
    (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^qformer\.(encoder\.layer\.\d+\.(?:cross)?attention)\.attention\.", r"Qformer.bert.\1.self."),
    (r"^qformer\.", "Qformer.bert."),
)
_BIASES = re.compile(r"visual_encoder\.blocks\.\d+\.attn\.qkv\.bias")


def of_hugging_face(state: Mapping[str, np.ndarray], language: str) -> dict[str, np.ndarray]:
    """Returns a state dict of transformers' Blip2ForConditionalGeneration under LAVIS's names, as views.

    Args:
      language: what LAVIS calls the language model, the first of a row of LANGUAGE.
    """
    own = (
        (r"^language_projection\.", f"{language}_proj."),
        (r"^language_model\.", f"{language}_model."),
    )
    renamed: dict[str, np.ndarray] = {}
    for key, array in state.items():
        for pattern in (*_FROM_HUGGING_FACE, *own):
            key = re.sub(*pattern, key)
        if _BIASES.fullmatch(key):
            query, _, value = np.split(np.asarray(array), 3)
            renamed[key.replace("qkv.bias", "q_bias")], renamed[key.replace("qkv.bias", "v_bias")] = query, value
        else:
            renamed[key] = array
    return renamed


def to_hugging_face(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the state dict of transformers' Blip2ForConditionalGeneration: the inverse of `of_hugging_face`."""
    renamed: dict[str, np.ndarray] = {}
    for key, array in state.items():
        if key.endswith("embeddings.position_ids") or key.endswith(".v_bias"):
            continue
        if key.endswith(".q_bias"):
            value = state[key.replace("q_bias", "v_bias")]
            key, array = key.replace("q_bias", "qkv.bias"), np.concatenate([array, np.zeros_like(value), value])
        renamed[named_by_hugging_face(key)] = array
    return renamed


def named_by_hugging_face(key: str) -> str:
    """Returns what transformers calls a key of LAVIS's."""
    for pattern in _TO_HUGGING_FACE:
        new = re.sub(*pattern, key)
        if new != key:
            return new
    return key
