"""config.json of transformers' Blip2ForConditionalGeneration as the fields of a model, and back.

Source: transformers 4.57.1, models/blip_2/configuration_blip_2.py, and of the parts models.hugging_face.
"""

from __future__ import annotations

import pathlib
from typing import Any

from prismer_jax.models import hugging_face, sizes
from prismer_jax.models.blip2.model import VARIANTS
from prismer_jax.models.blip2.parts import KINDS
from prismer_jax.models.blip2.stage2 import tower
from prismer_jax.towers.qformer import QFormer
from prismer_jax.towers.vit import ViT

USUAL = {"opt": "pretrained_opt2.7b", "t5": "pretrained_flant5xl", "llama": "pretrained_opt2.7b"}
_QUERIES = 32  # Blip2Config's default


def fields_of(config: hugging_face.Config, where: pathlib.Path) -> dict[str, Any]:
    """Returns the arguments of models.build that a config.json means: a variant, and what differs from it.

    Raises:
      UserError: a value is of another type, or of a model that is not had here.
    """
    names = ("vision_config", "qformer_config", "text_config")
    eyes, reader, text = (hugging_face.section(config, name, where) for name in names)
    hugging_face.check(eyes, {"hidden_act": (None, "gelu"), "qkv_bias": (None, True)}, where)
    hugging_face.check(reader, {"hidden_act": (None, "gelu"), "use_qformer_text_input": (None, False)}, where)
    parts = {
        "vision": hugging_face.fields(eyes, hugging_face.EVA, where),
        "qformer": hugging_face.fields(reader, hugging_face.QFORMER, where),
        "language": hugging_face.language(text, KINDS, where),
    }
    parts["qformer"]["queries"] = hugging_face.number(config, "num_query_tokens", _QUERIES, where)
    kind = parts["language"]["tower"]
    return sizes.nearest(parts, VARIANTS, USUAL[kind], {"vision": ViT, "qformer": QFormer, "language": tower(kind)})


def of(model: Any) -> dict[str, Any]:
    """Returns the config.json of a model with EVA's image encoder and a language model.

    Its one epsilon of the image encoder is that of the blocks, 1e-6; LAVIS's norm behind them has 1e-5.
    """
    kind = model.language["tower"]
    towers = {"vision": ViT, "qformer": QFormer, "language": tower(kind)}
    defaults = {part: {k: x.default for k, x in cls.__dataclass_fields__.items()} for part, cls in towers.items()}
    eyes, reader, language = ({**defaults[part], **getattr(model, part)} for part in towers)
    text = hugging_face.written(language, hugging_face.TEXT[kind]) | dict(model_type=kind)
    if kind == "opt":
        text |= dict(word_embed_proj_dim=language.get("word_width") or language["width"])
    if kind == "t5":
        text |= dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    if kind == "llama":
        text |= dict(tie_word_embeddings=True)
    return dict(
        model_type="blip-2",
        architectures=["Blip2ForConditionalGeneration"],
        num_query_tokens=reader["queries"],
        vision_config=hugging_face.written(eyes, hugging_face.EVA),
        qformer_config=hugging_face.written(reader, hugging_face.QFORMER) | dict(encoder_hidden_size=eyes["width"]),
        text_config=text,
        use_decoder_only_language_model=kind != "t5",
    )
