r"""Stage 2 of BLIP-2 as released: the queries of stage 1 learn to speak to a language model; it and the ViT are frozen.

    python -m tools.convert blip2 --qformer blip2_pretrained.pth --vision eva_vit_g.pth --language opt-2.7b/ \
        --tokenizer opt:opt-2.7b --output weights/blip2_stage2
    python -m prismer_jax.train --config configs/blip2_stage2.py:lm=opt2.7b --workdir runs/blip2_stage2

Arguments are those of blip2_stage1.py, and:
  lm: opt2.7b, opt6.7b, flant5xl ...: the end of a variant's name.
  tokenizer: the language model's, opt:FOLDER or sentencepiece:FILE.
  bits: in which the kernels that are not trained are kept, 'int8' or 'nf4' (docs/lora.md); 'bfloat16' by default.

Sources: salesforce/LAVIS, lavis/projects/blip2/train/pretrain_stage2.yaml; arXiv 2301.12597, section 3.3, for T5.
"""

from configs.blip2_stage1 import arguments, training
from prismer_jax import models
from prismer_jax.datasets import paper
from prismer_jax.errors import choose
from prismer_jax.models.blip2.model import FLAN_T5, OPT

LENGTH = 32  # tokens of a text
BITS = dict.fromkeys(("bfloat16", "int8", "nf4"))


def get_config(arg=None):
    own = dict(lm="opt2.7b", init="weights/blip2_stage2", tokenizer="opt:weights/blip2/opt-2.7b", batch=64)
    arg = arguments(arg, sets="coco+vg", bits="bfloat16", **own)
    _, section, t5 = language_model(arg, "pretrained", frozen="(language|vision)")
    length = 60 if arg.smoke else LENGTH
    write = f"prefix_suffix()|seq2seq({length}, {length})" if t5 else f"tokenize({length})"
    names = paper.choose_sets(arg.data, arg.sets)
    config = training(arg, names=names, warmup=2000, text=f"caption(style='blip')|{write}")
    config.model = section
    config.freeze = "freeze_lang_vision"
    config.loss = dict(name="blip2_stage2", start=not t5)
    look = f"labels_for('none')|decode|resize({arg.res})|caption_prompt()"
    decode = dict(method="beam", num_beams=5, max_new=4 if arg.smoke else 30, length="start" if t5 else "new")
    config.tasks = dict(caption=dict(pp=f"{look}|{'seq2seq(4)' if t5 else 'tokenize(3)'}", decode=decode))
    return config


def language_model(arg, kind, frozen="language"):
    """Returns the model that `lm` means, its section, and whether it is a T5.

    Args:
      kind: how the name of its variant begins.
      frozen: regex of the towers whose kernels are kept in `bits`.
    """
    choose("lm", arg.lm, {**OPT, **FLAN_T5})
    choose("bits", arg.bits, BITS)
    t5 = arg.lm in FLAN_T5
    section = dict(name="blip2", variant=f"{kind}_{arg.lm}")
    if arg.smoke:
        section = dict(name="blip2", variant="tiny_t5" if t5 else "tiny", language=dict(vocab_size=640))
    else:
        section.update(
            vision=dict(image_size=arg.res), dtype="bfloat16", remat="dots" if kind == "pretrained" else "full"
        )
    model = models.build(**section)
    if arg.bits != "bfloat16":
        section["quantize"] = dict(match=f"{frozen}/.*/kernel", kind=arg.bits)
    return model, section, t5
