"""The quickstart: a small Prismer learns to caption, and to answer questions about, rendered scenes on a laptop.

    python -m prismer_jax.train --config configs/quickstart.py --workdir runs/quickstart

Arguments, as in quickstart.py:z,smoke:
  z: PrismerZ, the same model without experts, for comparison.
  experts: a subset of them, such as depth+edge.
  places: False for the paper's Prismer; else what they see is on the photo's tokens, too (docs/experts.md).
  smoke: all of it in less than a minute, to see that it works.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes

SIZE, LABEL_SIZE = 96, 64  # pixels, of photos and of label maps
LENGTH = 100  # tokens: all eight questions of a scene with their answers, or its five captions


def get_config(arg=None):
    arg = parse_arg(arg, z=False, smoke=False, experts="all", places=True)
    experts = "none" if arg.z else arg.experts
    places = arg.places and experts != "none"
    count, batch = (128, 16) if arg.smoke else (4000, 32)

    config = ConfigDict()
    config.seed = 0
    config.num_workers = 0  # loader processes; threads of this one are enough here
    config.batch_size = batch
    config.total_steps = 20 if arg.smoke else 900

    # ---------------------------------------------------------------- data: captions and questions together
    look = f"labels_for('{experts}')|decode|resize({SIZE}, {SIZE if places else LABEL_SIZE})"
    train = dict(name="scenes", split="train", task="all", size=SIZE, count=count)
    config.tokenizer = "scenes"
    config.data = dict(
        captions=dict(**train, pp=f"{look}|pack({LENGTH}, of='captions')", weight=1.0),
        questions=dict(**train, pp=f"{look}|pack({LENGTH}, of='questions', answer='majority')", weight=2.0),
    )
    if places:  # once it can read, it learns to do without labels as well
        for name, part in list(config.data.items()):
            alone = dict(part, pp=f"labels_for('none')|{part.pp}", weight=part.weight / 3, start_percent=67.0)
            config.data[f"{name}_alone"] = alone

    # ---------------------------------------------------------------- model and training
    config.model = dict(
        name="prismer",
        variant="small",
        experts=experts,
        places=places,
        image_size=SIZE,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    config.freeze = "none"  # there is nothing pre-trained to keep
    config.loss = dict(name="cross_entropy", label_smoothing=0.0, normalize="example")
    # Orthogonalised steps learn this from scratch in half as many of them as Adam; at twice the rate they learn less.
    config.optim = dict(name="muon", lr=0.008, adam_ratio=0.25, weight_decay=0.05, clip_norm=1.0, warmup_percent=5.0)
    config.accumulate = 1  # parts of a batch, one after the other, where memory is short
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.distributed = None  # True: several processes, found through the cluster
    config.sharding = "replicated"  # or zero1, zero2, zero3, tensor: docs/scaling.md

    # ---------------------------------------------------------------- what it is used for, carried by its checkpoints
    config.tasks = dict(
        caption=dict(pp=f"{look}|caption_prompt()|tokenize(3)", decode=dict(method="beam", num_beams=3, max_new=28)),
        question=dict(pp=f"{look}|question_prompt()|tokenize(24)", decode=dict(method="greedy", max_new=8)),
    )
    held_out = dict(name="scenes", split="val", size=SIZE, count=count // 2)
    config.evals = {
        kind: dict(
            type=kind,
            data=dict(**held_out, task=task),
            train_data=dict(train, task=task),
            pp=config.tasks[task].pp,
            batch_size=batch,
            **config.tasks[task].decode,
        )
        for kind, task in (("caption", "caption"), ("vqa", "question"))
    }

    # ---------------------------------------------------------------- what is watched and kept
    config.log_steps = 5 if arg.smoke else 10
    config.save_steps = 10 if arg.smoke else 100
    config.checkpoint = dict(keep=1, best_metric="vqa/accuracy")
    config.report = dict(samples=12)
    config.profile = dict(first=0)  # 10: of the tenth step and the next four, for TensorBoard
    return config
