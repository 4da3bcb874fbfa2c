r"""Retrieval of COCO's photos and captions by stage 1 of BLIP-2, fine-tuned whole at 364 pixels.

    python -m tools.convert blip2 --qformer blip2_pretrained.pth --vision eva_vit_g.pth \
        --output weights/blip2_pretrained
    python -m prismer_jax.train --config transfers/blip2_retrieval.py --workdir runs/blip2_retrieval
    python -m prismer_jax.evaluate --config transfers/blip2_retrieval.py:on=flickr30k --checkpoint weights/finetune_coco

Arguments, as in blip2_retrieval.py:on=coco_val,k_test=256, are those of configs/blip2_stage1.py, and:
  init: a finished stage 1, LAVIS's by default.
  on: coco_test, as LAVIS chooses the best epoch, coco_val, or flickr30k: DATA/flickr30k_test.json of [{"image",
    "caption": [...]}] and photos in DATA/flickr30k.
  k_test: how many of the likeliest are ranked again.
  layer_decay: of the vision transformer's rates; LAVIS's file says 0.95, but its code sets one rate for all groups
    (common/optims.py), so that what it trained had 1.

Sources: salesforce/LAVIS, lavis/projects/blip2/train/retrieval_coco_ft.yaml and eval/ret_*.yaml.
"""

from configs.blip2_stage1 import LENGTH, arguments, fine_tuning
from prismer_jax import models
from prismer_jax.datasets import paper
from prismer_jax.errors import choose
from prismer_jax.models.blip2.conversion import tasks

READ = 35  # tokens of a text that is searched for


def get_config(arg=None):
    own = dict(init="weights/blip2_pretrained", tokenizer="tokenizers:weights/blip2/bert", batch=14, res=364)
    arg = arguments(arg, **own, on="coco_test", k_test=128, layer_decay=0.95)
    section = dict(
        name="blip2", variant="finetune_coco", vision=dict(image_size=arg.res), dtype="bfloat16", remat="full"
    )
    if arg.smoke:
        section = dict(name="blip2", variant="tiny_stage1", qformer=dict(vocab_size=641, pad=1, max_positions=60))
    model = models.build(**section)
    text = f"caption(style='blip')|tokenize({60 if arg.smoke else LENGTH})|image_id()"
    config = fine_tuning(arg, names=("coco",), text=text, layers=model.vision["layers"], layer_decay=arg.layer_decay)
    config.model = section
    config.freeze = "none"
    config.loss = dict(name="blip2_stage1", gather="reference")

    config.tasks = tasks(model)
    look = f"labels_for('none')|decode|resize({arg.res})"
    shared = dict(type="retrieval", pp=look, batch_size=8 if arg.smoke else 16, style="blip")
    read = dict(k_test=4, max_tokens=60) if arg.smoke else dict(k_test=arg.k_test, max_tokens=READ)
    config.evals = {arg.on: dict(**shared, **read, data=found(arg))}
    if not arg.smoke:
        config.checkpoint.best_metric = f"{arg.on}/r_mean"
    return config


def found(arg):
    """Returns the section of the photos and texts to be found."""
    flickr = dict(name="lists", path=f"{arg.data}/flickr30k_test.json", images=f"{arg.data}/flickr30k", task="caption")
    sets = dict(coco_test=None, coco_val=None, flickr30k=flickr)
    return choose("on", arg.on, sets) or paper.find(arg.data, arg.on, "none")
