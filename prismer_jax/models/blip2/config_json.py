"""config.json of transformers' Blip2ForConditionalGeneration as the fields of a model, and back.

Source: transformers 4.57.1, models/blip_2/configuration_blip_2.py, and of the parts models.hugging_face.
"""

from __future__ import annotations

import pathlib
from typing import Any

from prismer_jax.models import hugging_face, sizes
from prismer_jax.models.blip2.model import VARIANTS, build
from prismer_jax.models.blip2.parts import KINDS
from prismer_jax.models.blip2.stage2 import tower
from prismer_jax.towers.qformer import QFormer
from prismer_jax.towers.vit import ViT

USUAL = {"opt": "pretrained_opt2.7b", "t5": "pretrained_flant5xl", "llama": "pretrained_opt2.7b"}
_QUERIES = 32  # Blip2Config's default
# The token that stands where a query does, the first behind the words of the published tokenizers; it has a row in the
# table of words, as the model looks it up before it puts the queries there (modeling_blip_2.py).
IMAGE = {"opt": 50265, "t5": 32100}
_LINE_BREAK = 50118  # which ends an OPT's caption (salesforce/LAVIS, models/blip2_models/blip2_opt.py)
_GATES = {"gelu": "gelu", "gelu_tanh": "gelu_new"}  # towers.t5's activations, transformers' dense_act_fn


def fields_of(config: hugging_face.Config, where: pathlib.Path) -> dict[str, Any]:
    """Returns the arguments of models.build that a config.json means: a variant, and what differs from it.

    Raises:
      UserError: a value is of another type, or of a model that is not had here.
    """
    names = ("vision_config", "qformer_config", "text_config")
    eyes, reader, text = (hugging_face.section(config, name, where) for name in names)
    hugging_face.check(eyes, {"hidden_act": (None, "gelu"), "qkv_bias": (None, True)}, where)
    fixed = {"hidden_act": (None, "gelu"), "position_embedding_type": (None, "absolute")}
    hugging_face.check(reader, fixed | {"use_qformer_text_input": (None, False)}, where)
    parts = {
        "vision": hugging_face.fields(eyes, hugging_face.EVA, where),
        "qformer": hugging_face.fields(reader, hugging_face.QFORMER, where),
        "language": hugging_face.language(text, KINDS, where),
    }
    parts["qformer"]["queries"] = hugging_face.number(config, "num_query_tokens", _QUERIES, where)
    kind = parts["language"]["tower"]
    if kind == "opt":  # as for the other direction, see conversion.write_hugging_face
        hugging_face.check(text, {"word_embed_proj_dim": (None, parts["language"]["width"])}, where)
    if kind == "t5":
        # T5Config derives it from feed_forward_proj, and a value of its own goes before (configuration_t5.py).
        gate = text.get("dense_act_fn", "gelu_new")
        hugging_face.check({"dense_act_fn": gate}, {"dense_act_fn": tuple(_GATES.values())}, where)
        parts["language"]["activation"] = next(ours for ours, theirs in _GATES.items() if theirs == gate)
    return sizes.nearest(parts, VARIANTS, USUAL[kind], _towers(kind))


def of(model: Any) -> dict[str, Any]:
    """Returns the config.json of a model with EVA's image encoder and a language model.

    Its one epsilon of the image encoder is that of the blocks, 1e-6; LAVIS's norm behind them has 1e-5. The image's
    token is the published files' where there are so many words, else the last word, which no text may then have there.
    """
    kind = model.language["tower"]
    eyes, reader, language = (sizes.whole(model, part, cls) for part, cls in _towers(kind).items())
    text = hugging_face.written(language, hugging_face.TEXT[kind]) | dict(model_type=kind)
    image = min(IMAGE.get(kind, language["vocab_size"]), language["vocab_size"] - 1)
    if kind == "opt":
        text |= dict(word_embed_proj_dim=language["word_width"] or language["width"])
        text |= dict(eos_token_id=_LINE_BREAK) if image == IMAGE[kind] else {}
    if kind == "t5":
        text |= dict(feed_forward_proj="gated-gelu", dense_act_fn=_GATES[language["activation"]])
        text |= dict(tie_word_embeddings=False, bos_token_id=1, decoder_start_token_id=model.start)
    if kind == "llama":
        text |= dict(tie_word_embeddings=True)
    return dict(
        model_type="blip-2",
        architectures=["Blip2ForConditionalGeneration"],
        num_query_tokens=reader["queries"],
        image_token_index=image,
        vision_config=hugging_face.written(eyes, hugging_face.EVA),
        qformer_config=hugging_face.written(reader, hugging_face.QFORMER) | dict(encoder_hidden_size=eyes["width"]),
        text_config=text,
        use_decoder_only_language_model=kind != "t5",
    )


def lost(model: Any) -> list[str]:
    """Returns the names of a model's settings that its config.json does not say, such as the scale of Gemma's words."""
    back = build(**fields_of(of(model), pathlib.Path("config.json")))
    return sizes.lost(model, back, _towers(model.language["tower"]))


def _towers(kind: str) -> dict[str, Any]:
    return {"vision": ViT, "qformer": QFormer, "language": tower(kind)}
