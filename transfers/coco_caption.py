"""Captions of COCO, Karpathy's split, fine-tuned as in the paper at 480 pixels.

    python -m prismer_jax.train --config transfers/coco_caption.py:size=base,init=runs/pretrain --workdir runs/coco
    python -m prismer_jax.evaluate --config transfers/coco_caption.py --checkpoint models/caption_base
    python -m prismer_jax.evaluate --config transfers/coco_caption.py:zero_shot --checkpoint models/pretrain_base

Arguments, as in coco_caption.py:size=large,experts=none, are those of configs/common.py, and:
  select: the split by which the best epoch is chosen: 'test', as the reference does, or 'val', which is fair.
  zero_shot: no prefix: the captions of a pretrained model.

Sources: NVlabs/prismer, configs/caption.yaml, train_caption.py, dataset/caption_dataset.py, model/prismer_caption.py.
See docs/reproduce.md.
"""

from configs import common
from prismer_jax.datasets import paper

LENGTH = 30  # tokens of a caption, <s>, prefix and </s> among them
PREFIX, PREFIX_TOKENS = "A picture of", 4  # RoBERTa's, with <s>


def get_config(arg=None):
    arg = common.arguments(arg, select="test", zero_shot=False)
    prefix, width = ("", 1) if arg.zero_shot else (PREFIX, PREFIX_TOKENS)
    # The vision transformer is frozen but for its adaptors; the language model is trained.
    config = common.training(arg, batch_size=256, epochs=3, freeze="freeze_vision")

    # ---------------------------------------------------------------- data
    text = f"caption('{prefix}', style='reference')|tokenize({60 if arg.smoke else LENGTH})"
    train = paper.find(arg.data, "coco", arg.experts)
    config.data = dict(coco=dict(**train, pp=f"{common.augment(arg)}|{text}"))

    # ---------------------------------------------------------------- training
    config.optim = dict(name="adamw", lr=5e-5, weight_decay=0.05, schedule="cosine", end_lr=0.0)  # no warm-up

    # ---------------------------------------------------------------- use: 8 to 20 tokens, <s> and prefix among them
    decode = dict(method="beam", num_beams=3, max_new=20 - width, min_new=8 - width)
    prompt = f"{common.look(arg)}|caption_prompt('{prefix}')|tokenize({16 if arg.smoke else max(3, width)})"
    config.tasks = dict(caption=dict(pp=prompt, style="reference", decode=decode))
    config.evals = {
        split: common.evaluator(arg, f"coco_{split}", type="caption", pp=prompt, **decode)
        for split in sorted({arg.select, "test"})
    }

    if not arg.smoke:
        config.save_epochs = config.evaluate_epochs = 1
    config.checkpoint.best_metric = f"{arg.select}/cider"
    return config
