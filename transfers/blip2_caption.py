"""Captions of COCO, Karpathy's split, by a BLIP-2 whose vision transformer is trained, too, at 364 pixels.

    python -m prismer_jax.train --config transfers/blip2_caption.py:lm=opt2.7b --workdir runs/blip2_coco
    python -m prismer_jax.evaluate --config transfers/blip2_caption.py:lm=opt2.7b --checkpoint weights/caption_opt2.7b
    python -m prismer_jax.evaluate --config transfers/blip2_caption.py:on=nocaps_val --checkpoint runs/blip2_coco

Arguments, as in blip2_caption.py:lm=flant5xl,on=coco_val, are those of configs/blip2_stage2.py, and:
  on: the set to evaluate on: coco_test, coco_val, nocaps_val or nocaps_test (prismer_jax/datasets/paper.py).
  length: how long an OPT's caption is, as in docs/blip2.md: the published numbers are of 'lavis_4.26' or 'lavis'.
  layer_decay: 1 as released; below it the rate falls from layer to layer of the vision transformer.
  lora: adapters of the language model are trained instead of the vision transformer (docs/lora.md).
  bits: in which the language model's kernels are kept: 'bfloat16', 'int8' or 'nf4'.

Sources: salesforce/LAVIS, lavis/projects/blip2/train/caption_coco_ft.yaml and eval/caption_coco_*.yaml.
"""

from configs.blip2_stage1 import LORA, LORA_FREEZE, arguments, fine_tuning
from configs.blip2_stage2 import language_model
from prismer_jax.datasets import paper
from prismer_jax.models.blip2.conversion import tasks

PROMPT, LENGTH = "a photo of", 32  # of captions; tokens of one, its prompt among them


def get_config(arg=None):
    own = dict(lm="opt2.7b", init="weights/blip2_stage2", tokenizer="opt:weights/blip2/opt-2.7b", batch=16, res=364)
    own |= dict(on="coco_test", length="lavis_4.26", layer_decay=1.0, lora=False, bits="bfloat16")
    arg = arguments(arg, **own)
    model, section, t5 = language_model(arg, "caption")
    length = 60 if arg.smoke else LENGTH
    write = f"seq2seq({length}, {length})" if t5 else f"tokenize({length})"
    text = f"caption('{PROMPT}', style='blip')|{write}"
    config = fine_tuning(arg, names=("coco",), text=text, layers=model.vision["layers"], layer_decay=arg.layer_decay)
    config.model = section
    config.freeze = LORA_FREEZE if arg.lora else "freeze_lang"
    config.loss = dict(name="blip2_stage2")  # of the caption, and not of its prompt
    if arg.lora:
        config.model.lora = LORA

    task = tasks(model)["caption"]
    task["decode"]["length"] = "start" if t5 else arg.length
    if arg.smoke:
        task["decode"].update(max_new=4, min_new=1)
    config.tasks = dict(caption=task)
    held_out = dict(**paper.find(arg.data, arg.on, "none"))
    shared = dict(type="caption", data=held_out, batch_size=8, style="blip", predict_only=arg.on == "nocaps_test")
    config.evals = {arg.on: dict(**shared, pp=task["pp"], **task["decode"])}
    if not arg.smoke and arg.on != "nocaps_test":
        config.checkpoint.best_metric = f"{arg.on}/cider"
    return config
