"""Fine-tune on your own photos: copy this file and change what the comments point at.

    python -m prismer_jax.train --config transfers/forkme.py:data=my_photos --workdir runs/mine

starts from the quickstart's checkpoint and learns to caption the photos of a folder. Arguments, as in
forkme.py:data=my_photos,task=questions,init=runs/other:
  data: folder with captions_train.json, captions_val.json and images/.
  task: captions, or questions: then of questions_train.json and questions_val.json.
  init: what to start from: a workdir or an export.
  smoke: a few steps from scratch on rendered scenes, to see that it works.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, scenes
from prismer_jax.errors import choose

SIZE, LABEL_SIZE, LENGTH = 96, 64, 48  # those of the checkpoint that you start from


def get_config(arg=None):
    arg = parse_arg(arg, data="my_photos", task="captions", init="runs/quickstart", smoke=False)

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 16 if arg.smoke else 32
    config.total_steps = 2 if arg.smoke else 200

    # The data. `lists` reads COCO captions, the official Prismer lists (captions or questions), VQAv2's files (with
    # annotations="...": their answers), JSON lines, and folders of photos with a .txt beside each: see
    # prismer_jax/datasets/lists.py; `tars` and `records` are for more photos than a folder holds. Expert labels that
    # lie in LABELS/<expert>/<photo>.png are used if you add labels="LABELS" to both; without them the experts see an
    # empty map.
    train = dict(name="lists", path=f"{arg.data}/{arg.task}_train.json")
    held_out = dict(name="lists", path=f"{arg.data}/{arg.task}_val.json")
    if arg.smoke:
        train["path"], held_out["path"] = miniature.own(arg.task)

    # What is learnt of them, and how it is used afterwards.
    if choose("task", arg.task, dict(captions=True, questions=False)):
        text, prompt = "caption()", "caption_prompt()|tokenize(3)"
        decode = dict(method="beam", num_beams=3, max_new=20)
        evaluator, metric = "caption", "cider"
    else:
        text, prompt = "question()", "question_prompt()|tokenize(24)"
        decode = dict(method="greedy", max_new=8)
        evaluator, metric = "vqa", "accuracy"

    config.tokenizer = "scenes"  # writes any text; a model from a RoBERTa checkpoint needs "roberta:DIR"
    look = f"labels_for('all')|decode|resize({SIZE}, {LABEL_SIZE})"
    # Augmentation sees the labels too. Leave `flip` out where texts say left or right.
    augment = f"labels_for('all')|decode|random_resized_crop({SIZE}, {LABEL_SIZE})|flip()"
    config.data = dict(mine=dict(**train, pp=f"{augment}|{text}|tokenize({LENGTH})"))

    # The model must be that of the checkpoint, which is named in `init`; only its resolution may differ. What differs
    # else (another number of classes, say) is listed in the error; name it in `init_fresh`, as regexes over parameter
    # names, to start it from scratch.
    config.init = None if arg.smoke else arg.init
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
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, normalize="example")
    config.optim = dict(lr=1e-3, weight_decay=0.05, clip_norm=1.0, warmup_percent=10.0)
    config.accumulate = 1  # parts of a batch one after the other, where memory is short

    # How the result is used, by `python -m prismer_jax.caption` and by the evaluation.
    pp = f"{look}|{prompt}"
    config.tasks = {arg.task.removesuffix("s"): dict(pp=pp, decode=decode)}
    config.evals = {evaluator: dict(type=evaluator, data=held_out, train_data=train, pp=pp, batch_size=16, **decode)}
    config.log_steps = 1 if arg.smoke else 10
    config.save_steps = 50
    config.checkpoint = dict(keep=1, best_metric=f"{evaluator}/{metric}")
    config.report = dict(samples=12)
    return config
