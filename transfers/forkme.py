"""Fine-tune on your own photos: copy this file and change what the comments point at.

    python -m prismer_jax.train --config transfers/forkme.py --workdir runs/mine

starts from the quickstart's checkpoint and learns to caption the photos of a COCO captions file. Arguments, as in
forkme.py:data=my_folder,init=runs/other:
  data: folder with captions_train.json, captions_val.json and images/.
  init: what to start from: a workdir or an export.
  smoke: a few steps, to see that it works.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes

SIZE, LABEL_SIZE, LENGTH = 96, 64, 48  # those of the checkpoint that you start from


def get_config(arg=None):
    arg = parse_arg(arg, data="../shared/data/captions/flickr8k_1k", init="runs/quickstart", smoke=False)

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 16 if arg.smoke else 32
    config.total_steps = 4 if arg.smoke else 200

    # The data. `lists` reads COCO captions, the official Prismer lists (captions or questions), VQAv2's files, JSON
    # lines, and folders of photos with a .txt beside each: see prismer_jax/datasets/lists.py. Expert labels that lie in
    # LABELS/<expert>/<photo>.png are used if you add labels="LABELS"; without them the experts see an empty map.
    config.tokenizer = "scenes"  # writes any text; a model from a RoBERTa checkpoint needs "roberta:DIR"
    look = f"labels_for('all')|decode|resize({SIZE}, {LABEL_SIZE})"
    # Augmentation sees the labels too. Leave `flip` out where texts say left or right.
    augment = f"labels_for('all')|decode|random_resized_crop({SIZE}, {LABEL_SIZE})|flip()"
    train = dict(name="lists", path=f"{arg.data}/captions_train.json", limit=64 if arg.smoke else None)
    config.data = dict(captions=dict(**train, pp=f"{augment}|caption()|tokenize({LENGTH})"))
    # For questions: dict(name="lists", path="questions.json", pp=f"{augment}|question()|tokenize({LENGTH})").

    # The model must be that of the checkpoint, which is named in `init`. What differs (another number of classes, say)
    # is listed in the error; name it in `init_fresh`, as regexes over parameter names, to start it from scratch.
    config.init = arg.init
    config.model = dict(
        name="prismer",
        variant="small",
        experts="all",
        image_size=SIZE,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    # 'freeze_vision' keeps the vision transformer but for its adaptors, 'freeze_lang' the language model, as the paper
    # does with pre-trained ones; regexes of your own work too.
    config.freeze = "none"
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, per_token=True)
    config.optim = dict(lr=1e-3, weight_decay=0.05, clip_norm=1.0, warmup_percent=10.0)

    # How the result is used, by `python -m prismer_jax.caption` and by the evaluation.
    decode = dict(method="beam", num_beams=3, max_new=20)
    config.tasks = dict(caption=dict(pp=f"{look}|caption_prompt()|tokenize(3)", decode=decode))
    held_out = dict(name="lists", path=f"{arg.data}/captions_val.json", limit=32 if arg.smoke else None)
    config.evals = dict(
        caption=dict(
            type="caption", data=held_out, train_data=train, pp=config.tasks.caption.pp, batch_size=16, **decode
        )
    )
    config.log_steps = 2 if arg.smoke else 10
    config.save_steps = 50
    config.checkpoint = dict(keep=1, best_metric="caption/cider")
    config.report = dict(samples=12)
    return config
