"""A student of the experts: one small network learns to make the labels of all of them, from photos that they labelled.

    python -m prismer_jax.train --config configs/student.py:data=photos/,labels=labels/ --workdir runs/student
    python -m prismer_jax.train --config configs/student.py:dataset=shards/coco --workdir runs/student
    python -m prismer_jax.train --config configs/student.py:scenes --workdir runs/student
    python -m tools.make_labels --experts student --checkpoints runs/student --images more/ --output labels/

Arguments, as in student.py:scenes,kinds=depth+edge:
  data, labels: a folder of photos, and of their labels as tools.make_labels leaves them.
  dataset: or a data set of records, of tools.build_dataset or tools.make_labels.
  scenes: or rendered scenes, whose labels are exact: a smaller network, and a table of its fidelity on others.
  kinds: of labels, such as depth+edge; all six by default, of which some example must have each.
  res: side of the photos that it sees; 480, or 96 of the scenes.
  steps, batch: of training, and photos in each.
  smoke: all of it, on scenes, in less than a minute, to see that it works.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes
from prismer_jax.errors import UserError


def get_config(arg=None):
    arg = parse_arg(
        arg, data="", labels="", dataset="", scenes=False, kinds="all", res=0, steps=0, batch=0, smoke=False
    )
    given = [name for name in ("data", "dataset", "scenes") if getattr(arg, name)]
    if len(given) + (arg.smoke and not given) != 1 or bool(arg.data) != bool(arg.labels):
        raise UserError("configs/student.py: give data=PHOTOS,labels=LABELS or dataset=DIR or scenes.")
    rendered = arg.scenes or not given
    res = arg.res or (96 if rendered else 480)

    config = ConfigDict()
    config.seed = 0
    config.num_workers = 0 if rendered else 4
    config.batch_size = arg.batch or (16 if arg.smoke else 32)
    config.total_steps = arg.steps or (8 if arg.smoke else 1400 if rendered else 30_000)

    # ---------------------------------------------------------------- data: photos and labels, of whatever source
    look = f"labels_for('{arg.kinds}')|decode|resize({res})"
    moved = "|flip()" if "ocr_detection" not in arg.kinds and arg.kinds != "all" else ""  # words would be mirrored
    # Half of a photo is enough to be looked at; scenes are as large as the network sees them.
    train_pp = f"{look}{moved}" if rendered else f"labels_for('{arg.kinds}')|decode|random_resized_crop({res}){moved}"
    count = 64 if arg.smoke else 4000
    source = dict(name="scenes", task="all", size=96, count=count)
    if arg.data:
        source = dict(name="photos", images=arg.data, labels=arg.labels)
    elif arg.dataset:
        source = dict(name="records", path=arg.dataset)
    config.tokenizer = "scenes"  # of no use, but every checkpoint has one
    config.data = dict(photos=dict(**source, pp=train_pp))
    if rendered:
        config.data.photos.split = "train"

    # ---------------------------------------------------------------- model and training
    own = dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES) if rendered else {}
    config.model = dict(name="student", variant="small" if rendered else "base", kinds=arg.kinds, image_size=res)
    config.model.classes = own
    if arg.smoke:
        config.model.update(width=32, layers=1, trunk=16)
    # Squares of what is less than 1 are small beside logarithms.
    config.loss = dict(name="label_maps", weight=dict(depth=4.0, normal=4.0, ocr_detection=0.5))
    # As in quickstart.py, where it learns from scratch in fewer steps than Adam.
    config.optim = dict(name="muon", lr=0.008, adam_ratio=0.25, weight_decay=0.05, clip_norm=1.0, warmup_percent=5.0)
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.sharding = "replicated"

    # ---------------------------------------------------------------- what is watched and kept
    config.tasks = dict()  # it says nothing
    config.evals = dict()
    if rendered:
        held_out = dict(name="scenes", split="val", task="all", size=96, count=count // 2)
        config.evals.fidelity = dict(type="fidelity", data=held_out, pp=look, batch_size=config.batch_size)
    config.log_steps = 4 if arg.smoke else 50
    config.save_percent = 20.0
    config.evaluate_percent = 50.0
    config.checkpoint = dict(keep=1)
    return config
