"""Few-shot ImageNet as in the paper: fine-tuned on k photos of each class, classified by ranking the classes' names.

    python -m prismer_jax.train --config transfers/imagenet_fewshot.py:shots=4,init=runs/pretrain --workdir runs/shots4

Arguments, as in imagenet_fewshot.py:size=large,shots=16,seed=1:
  shots: photos of each class to learn from: 1, 2, 4, 8, 16, 20 ...
  seed: of the draw of these photos, and of the training. The photos of fewer shots are among those of more.
  size: base, large or huge.
  experts: all, none (PrismerZ), or some, such as depth+edge.
  res: pixels of a photo's side.
  data: folder with imagenet_train/<wnid>/*.JPEG to learn from, imagenet/<wnid>/*.JPEG to be classified,
    imagenet/imagenet_answer.json (the names), imagenet/imagenet_class.json ({wnid: index}), and labels.
  init: the pretrained model: a workdir, or a converted checkpoint. Its positions are resized to `res`.
  tokenizer: folder of RoBERTa's vocab.json and merges.txt.
  smoke: all of it in less than a minute, on a dozen rendered scenes, to see that it works.

Sources: NVlabs/prismer, configs/classification.yaml, train_classification.py, dataset/classification_dataset.py. See
docs/reproduce.md.
"""

import os

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper

LENGTH = 30  # tokens of a prompt and a name, <s> and </s> among them
PREFIX, PREFIX_TOKENS = "A photo of a", 5  # RoBERTa's, with <s>


def get_config(arg=None):
    arg = parse_arg(
        arg,
        shots=1,
        seed=42,
        size="base",
        experts="all",
        res=384,
        data="datasets",
        init="runs/pretrain",
        tokenizer="weights/tokenizer",
        smoke=False,
    )
    if arg.smoke:
        arg.size, arg.res, arg.data = "tiny", 64, miniature.folder()
    labels = 64 if arg.smoke else 224  # pixels of label maps, whatever the photo's

    config = ConfigDict()
    config.seed = arg.seed
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size = 8 if arg.smoke else 64
    if arg.smoke:
        config.total_steps = 2
    else:
        config.total_epochs = 20

    # ---------------------------------------------------------------- data
    config.tokenizer = "scenes" if arg.smoke else f"roberta:{arg.tokenizer}"
    look = f"labels_for('{arg.experts}')|decode|resize({arg.res}, {labels})"
    # flip(normals='reference') mirrors normals without turning them, as the reference does.
    augment = (
        f"labels_for('{arg.experts}')|decode|random_resized_crop({arg.res}, {labels}, scale=(0.5, 1.0))"
        "|flip()|randaugment(2, 5)"
    )
    names = f"{arg.data}/imagenet/imagenet_answer.json"

    def photos(folder, **options):
        where = paper.labels_of(arg.data, folder, arg.experts, needed=os.path.isdir(f"{arg.data}/{folder}"))
        indices = f"{arg.data}/imagenet/imagenet_class.json"
        return dict(name="fewshot", path=f"{arg.data}/{folder}", names=names, indices=indices, **where, **options)

    text = f"caption('{PREFIX}')|tokenize({LENGTH})"
    train = photos("imagenet_train", shots=arg.shots, seed=arg.seed)
    config.data = dict(imagenet=dict(**train, pp=f"{augment}|{text}"))

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
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, per_token=False)  # summed over a name's tokens
    config.optim = dict(name="adamw", lr=5e-5, weight_decay=0.05, schedule="cosine", end_lr=0.0)  # no warm-up
    config.accumulate = 1  # parts of a batch one after the other, where memory is short
    config.mesh = dict(data=-1, fsdp=1)  # --config.mesh.fsdp=8 shares parameters among 8 devices
    config.sharding = [(".*", "fsdp")]

    # ---------------------------------------------------------------- use
    prompt = f"{look}|caption_prompt('{PREFIX}')|tokenize({16 if arg.smoke else PREFIX_TOKENS})"
    decode = dict(method="beam", num_beams=3, max_new=15)
    config.tasks = dict(caption=dict(pp=prompt, style="reference", decode=decode))
    config.evals = dict(
        imagenet=dict(
            type="classification",
            # The reference augments the photos that it classifies (scale_size, train=True); here they are resized only.
            data=photos("imagenet"),
            pp=prompt,
            classes=names,
            k=32,
            style="reference",
            batch_size=8 if arg.smoke else 256,
        )
    )

    # ---------------------------------------------------------------- what is watched and kept
    config.log_steps = 1 if arg.smoke else 10
    if not arg.smoke:
        config.save_epochs = config.evaluate_epochs = 5  # the best of these is kept, as in the reference
    config.checkpoint = dict(keep=1, best_metric="imagenet/accuracy")
    config.report = dict(samples=4 if arg.smoke else 12)
    return config
