"""The sizes of BLIP-2, what of it can be frozen, and how a model is built.

Sources: arXiv 2301.12597; salesforce/LAVIS at 506965b, models/blip2_models/, models/eva_vit.py and models/clip_vit.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax.core import FrozenDict

from prismer_jax.errors import UserError, choose
from prismer_jax.labels import select
from prismer_jax.models.blip2.base import Blip2Base
from prismer_jax.models.blip2.stage1 import Blip2Stage1
from prismer_jax.models.blip2.stage2 import TOWERS, Blip2CausalLM, tower
from prismer_jax.models.blip2.stage2_t5 import Blip2T5
from prismer_jax.models.decoder_only import check_multiples, fields_of
from prismer_jax.models.vision import FEATURES, RESIZE  # noqa: F401 - of the family, see __init__.py
from prismer_jax.towers.qformer import QFormer
from prismer_jax.towers.vit import ViT

# EVA's ViTs: keys without bias, the class token among what the queries look at, and no norm behind the last block.
_EVA = dict(patch_size=14, activation="gelu", class_token=True, keep_class=True, final_norm=False, key_bias=False)
_VIT_G = dict(_EVA, width=1408, layers=39, heads=16, mlp_dim=6144)
# CLIP's ViT-L without its last block.
_CLIP = dict(patch_size=14, activation="quick_gelu", class_token=True, keep_class=True, patch_bias=False)
_CLIP |= dict(first_norm=True, final_norm=False, key_bias=True, epsilon=1e-5)
VIT_L = dict(_CLIP, width=1024, layers=23, heads=16, mlp_dim=4096)
_BERT = dict(width=768, layers=12, heads=12, mlp_dim=3072, queries=32)
_TEXT = dict(vocab_size=30523)  # BERT's, and [DEC]
_OPT = dict(tower="opt", vocab_size=50272)
OPT = {
    "opt125m": dict(_OPT, width=768, layers=12, heads=12, mlp_dim=3072),
    "opt350m": dict(_OPT, width=1024, layers=24, heads=16, mlp_dim=4096, word_width=512, pre_norm=False),
    "opt1.3b": dict(_OPT, width=2048, layers=24, heads=32, mlp_dim=8192),
    "opt2.7b": dict(_OPT, width=2560, layers=32, heads=32, mlp_dim=10240),
    "opt6.7b": dict(_OPT, width=4096, layers=32, heads=32, mlp_dim=16384),
}
_T5 = dict(tower="t5", head_dim=64, vocab_size=32128)
FLAN_T5 = {
    "flant5small": dict(_T5, width=512, layers=8, decoder_layers=8, heads=6, mlp_dim=1024),
    "flant5base": dict(_T5, width=768, layers=12, decoder_layers=12, heads=12, mlp_dim=2048),
    "flant5large": dict(_T5, width=1024, layers=24, decoder_layers=24, heads=16, mlp_dim=2816),
    "flant5xl": dict(_T5, width=2048, layers=24, decoder_layers=24, heads=32, mlp_dim=5120),
    "flant5xxl": dict(_T5, width=4096, layers=24, decoder_layers=24, heads=64, mlp_dim=10240),
}
_TINY_VIT = dict(_EVA, image_size=42, width=48, layers=2, heads=3, mlp_dim=209)
_TINY = dict(width=32, layers=2, heads=4, mlp_dim=64, queries=8, max_positions=40)
# Named after LAVIS's files: blip2_pretrained.pth is of stage 1, blip2_pretrained_opt2.7b.pth of stage 2.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny_stage1": dict(vision=_TINY_VIT, qformer=dict(_TINY, vocab_size=61), embed_dim=16),  # of tests
    "tiny": dict(
        vision=_TINY_VIT,
        qformer=_TINY,
        language=dict(tower="opt", width=40, layers=2, heads=4, mlp_dim=80, vocab_size=96, max_positions=128),
    ),
    "tiny_t5": dict(
        vision=_TINY_VIT,
        qformer=_TINY,
        language=dict(_T5, width=40, layers=2, decoder_layers=2, heads=6, head_dim=8, mlp_dim=72, vocab_size=96),
    ),
    "tiny_vitL": dict(
        vision=dict(_CLIP, image_size=42, width=48, layers=2, heads=3, mlp_dim=192),
        qformer=dict(_TINY, vocab_size=61),
        embed_dim=16,
    ),
    **{
        name: dict(vision=dict(tower, image_size=size), qformer=dict(_BERT, **_TEXT))
        for name, tower, size in (
            ("pretrained", _VIT_G, 224),
            ("pretrained_vitL", VIT_L, 224),
            ("finetune_coco", _VIT_G, 364),
        )
    },
    **{
        f"{kind}_{name}": dict(vision=dict(_VIT_G, image_size=size), qformer=_BERT, language=dict(language))
        for kind, size in (("pretrained", 224), ("caption", 364))
        for name, language in {**OPT, **FLAN_T5}.items()
    },
    "pretrained_flant5xl_vitL": dict(
        vision=dict(VIT_L, image_size=224), qformer=_BERT, language=dict(FLAN_T5["flant5xl"])
    ),
}

FREEZE: dict[str, tuple[str, ...]] = {
    "none": (),
    "freeze_vision": ("vision/.*",),  # stage 1
    "freeze_lang": ("language/.*",),  # captions at 364 pixels
    "freeze_lang_vision": ("vision/.*", "language/.*"),  # stage 2
    "experts_only": (r"(?!labels/).*",),
}


def build(
    variant: str = "pretrained_opt2.7b", experts: str | Sequence[str] = "none", tokenizer: Any = None, **overrides: Any
) -> Blip2Base:
    """Returns a model of one of the sizes in VARIANTS.

    Args:
      experts: as in labels.select: 'none', 'all', 'depth+edge' or a sequence.
      tokenizer: whose padding T5 starts its texts with; 0 without.
      overrides: fields of Blip2Base; `vision`, `qformer` and `language` are merged into the variant's. A `language`
        with another `tower` than the variant's stands instead of it.

    Raises:
      UserError: an unknown variant or field, or sizes that do not fit together.
    """
    sizes = dict(choose("variant", variant, VARIANTS))
    language = dict(overrides.pop("language", {}))
    if language.get("tower") in (None, sizes.get("language", {}).get("tower")):
        language = {**sizes.get("language", {}), **language}
    kind = language.pop("tower", None)
    cls = choose("language.tower", kind, {None: Blip2Stage1, **dict.fromkeys(TOWERS, Blip2CausalLM), "t5": Blip2T5})
    if cls is Blip2T5 and tokenizer is not None:
        overrides["start"] = tokenizer.pad
    if kind is None and language:
        raise UserError(f"language.{min(language)}: say of which tower it is, language.tower: {', '.join(TOWERS)}.")
    towers: dict[str, Any] = {"vision": ViT, "qformer": QFormer}
    plain = {variant: {**sizes, "language": FrozenDict()}}
    if kind is not None:
        towers["language"], overrides["language"] = tower(kind), language
    fields = fields_of(cls, plain, variant, overrides, towers)
    fields["language"] = FrozenDict({**language, "tower": kind} if kind else {})
    _check(fields)
    return cls(**fields | {"experts": select(experts)})


def _check(fields: Mapping[str, Any]) -> None:
    reader, vocabulary = fields["qformer"], fields["qformer"].get("vocab_size", 0)
    check_multiples(
        ("qformer.width", reader["width"], reader["heads"]),
        ("qformer.layers", reader["layers"], reader.get("cross_every", QFormer.cross_every)),
    )
    if not fields["language"] and not vocabulary:
        raise UserError(
            "The model has neither a language model nor words of its own: set language.tower, or qformer.vocab_size."
        )
    if fields["language"] and vocabulary:
        raise UserError("qformer.vocab_size is of stage 1: behind a language model the Q-Former reads no text.")
