"""Captions of COCO, Karpathy's split, fine-tuned as in the paper at 480 pixels.

    python -m prismer_jax.train --config transfers/coco_caption.py:size=base,init=runs/pretrain --workdir runs/coco
    python -m prismer_jax.evaluate --config transfers/coco_caption.py --checkpoint models/caption_base
    python -m prismer_jax.evaluate --config transfers/coco_caption.py:zero_shot --checkpoint models/pretrain_base

Arguments, as in coco_caption.py:size=large,experts=none:
  size: base, large or huge.
  experts: all, none (PrismerZ), or some, such as depth+edge.
  res: pixels of a photo's side.
  data: folder of lists, photos and labels, or of finished data sets; see prismer_jax/datasets/paper.py.
  init: the pretrained model: a workdir, or a converted checkpoint. Its positions are resized to `res`.
  select: the split by which the best epoch is chosen: 'test', as the reference does, or 'val', which is fair.
  zero_shot: no prefix: the captions of a pretrained model.
  tokenizer: folder of RoBERTa's vocab.json and merges.txt.
  smoke: all of it in less than a minute, on a dozen rendered scenes, to see that it works.

Sources: NVlabs/prismer, configs/caption.yaml, train_caption.py, dataset/caption_dataset.py, model/prismer_caption.py.
See docs/reproduce.md.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper

LENGTH = 30  # tokens of a caption, <s>, prefix and </s> among them
PREFIX, PREFIX_TOKENS = "A picture of", 4  # RoBERTa's, with <s>


def get_config(arg=None):
    arg = parse_arg(
        arg,
        size="base",
        experts="all",
        res=480,
        data="datasets",
        init="runs/pretrain",
        select="test",
        zero_shot=False,
        tokenizer="weights/tokenizer",
        smoke=False,
    )
    if arg.smoke:
        arg.size, arg.res, arg.data = "tiny", 64, miniature.folder()
    labels = 64 if arg.smoke else 224  # pixels of label maps, whatever the photo's
    prefix, width = ("", 1) if arg.zero_shot else (PREFIX, PREFIX_TOKENS)

    config = ConfigDict()
    config.seed = 42
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size = 8 if arg.smoke else 256
    if arg.smoke:
        config.total_steps = 2
    else:
        config.total_epochs = 3  # an epoch has every caption once: five times every photo

    # ---------------------------------------------------------------- data
    config.tokenizer = "scenes" if arg.smoke else f"roberta:{arg.tokenizer}"
    look = f"labels_for('{arg.experts}')|decode|resize({arg.res}, {labels})"
    # flip(normals='reference') mirrors normals without turning them, as the reference does.
    augment = (
        f"labels_for('{arg.experts}')|decode|random_resized_crop({arg.res}, {labels}, scale=(0.5, 1.0))"
        "|flip()|randaugment(2, 5)"
    )
    text = f"caption('{prefix}', style='reference')|tokenize({60 if arg.smoke else LENGTH})"
    train = paper.find(arg.data, "coco", arg.experts)
    config.data = dict(coco=dict(**train, pp=f"{augment}|{text}"))

    # ---------------------------------------------------------------- model
    config.model = dict(name="prismer", variant=arg.size, experts=arg.experts, image_size=arg.res)
    config.init = None if arg.smoke else arg.init
    if arg.smoke:
        config.model.decoder = dict(vocab_size=640)
    else:
        config.model.dtype = "bfloat16"  # the reference: fp16 with a scaled loss
        config.model.remat = "dots"
    config.freeze = "freeze_vision"  # but for its adaptors; the language model is trained

    # ---------------------------------------------------------------- training
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, per_token=False)  # summed over a caption's tokens
    config.optim = dict(name="adamw", lr=5e-5, weight_decay=0.05, schedule="cosine", end_lr=0.0)  # no warm-up
    config.accumulate = 1  # parts of a batch one after the other, where memory is short
    config.mesh = dict(data=-1, fsdp=1)  # --config.mesh.fsdp=8 shares parameters among 8 devices
    config.sharding = [(".*", "fsdp")]

    # ---------------------------------------------------------------- use: 8 to 20 tokens, <s> and prefix among them
    decode = dict(method="beam", num_beams=3, max_new=20 - width, min_new=8 - width)
    prompt = f"{look}|caption_prompt('{prefix}')|tokenize({16 if arg.smoke else max(3, width)})"
    config.tasks = dict(caption=dict(pp=prompt, style="reference", decode=decode))
    config.evals = {
        split: dict(
            type="caption",
            data=paper.find(arg.data, f"coco_{split}", arg.experts),
            pp=prompt,
            style="reference",
            batch_size=8 if arg.smoke else 256,
            **decode,
        )
        for split in sorted({arg.select, "test"})
    }

    # ---------------------------------------------------------------- what is watched and kept
    config.log_steps = 1 if arg.smoke else 50
    if not arg.smoke:
        config.save_epochs = config.evaluate_epochs = 1
    config.checkpoint = dict(keep=1, best_metric=f"{arg.select}/cider")
    config.report = dict(samples=4 if arg.smoke else 12)
    return config
