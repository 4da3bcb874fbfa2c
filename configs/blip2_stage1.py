r"""Stage 1 of BLIP-2 as released: queries learn to compare, to match and to write texts of photos, for a frozen ViT-g.

    python -m tools.download blip2 bert-base-uncased
    python -m tools.convert blip2 --qformer weights/blip2/bert --vision weights/blip2/eva_vit_g.pth \
        --output weights/blip2_stage1
    python -m prismer_jax.train --config configs/blip2_stage1.py --workdir runs/blip2_stage1

Arguments, as in blip2_stage1.py:sets=coco,batch=64:
  data: folder of lists and photos; see prismer_jax/datasets/paper.py.
  sets: COCO and Visual Genome as released; PAPER below has the sets of the paper that are found there, too.
  init: what is trained on, by default the published start: a Q-Former from BERT, and EVA's ViT-g. Made from LAVIS's
    blip2_pretrained.pth (--qformer) it is a finished stage 1, to be trained on. '' begins with new queries and a new
    vision transformer, which learns little while frozen.
  tokenizer: BERT's, such as tokenizers:FOLDER of its tokenizer.json.
  res, batch: pixels of a side; examples a step, over all devices: LAVIS has 100, and 64 in stage 2, a process.
  smoke: all of it in a minute, on a dozen rendered scenes, to see that it works.

Source: salesforce/LAVIS, lavis/projects/blip2/train/pretrain_stage1.yaml; there the rate climbs in epoch 0 alone.
"""

from ml_collections import ConfigDict

from prismer_jax import models
from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper
from prismer_jax.models.blip2.conversion import tasks

PAPER = ("coco", "vg", "cc12m", "cc3m_sgu")  # the paper adds 115 million pairs of LAION
LENGTH = 32  # tokens of a text, its start and its end among them
NO_DECAY = (("(.*/)?(bias|scale|head_bias|patch_bias)", 0.0),)


def get_config(arg=None):
    own = dict(init="weights/blip2_stage1", tokenizer="tokenizers:weights/blip2/bert", batch=100)
    arg = arguments(arg, sets="coco+vg", **own)
    text = f"caption(style='blip')|tokenize({60 if arg.smoke else LENGTH})"
    config = training(arg, names=paper.choose_sets(arg.data, arg.sets), warmup=5000, text=text)
    config.model = dict(name="blip2", variant="tiny_stage1" if arg.smoke else "pretrained")
    if arg.smoke:
        config.model.qformer = dict(vocab_size=641, pad=1, max_positions=60)
    else:
        config.model.update(vision=dict(image_size=arg.res), dtype="bfloat16", remat="dots")
    config.freeze = "freeze_vision"
    config.loss = dict(name="blip2_stage1", gather="reference")
    config.tasks = tasks(models.build(**config.model.to_dict()))
    return config


def arguments(arg, **own):
    """Parses the arguments that all recipes share, and their own, which may give a shared one another default."""
    arg = parse_arg(arg, **dict(data="datasets", res=224, smoke=False) | own)
    if arg.smoke:
        arg.data, arg.sets, arg.res, arg.batch, arg.init, arg.tokenizer = (
            miniature.folder(),
            "coco",
            42,
            8,
            "",
            "scenes",
        )
    return arg


# What adapters of a language model are, and what is not trained beside them.
LORA = dict(match="language/.*", rank=16, alpha=16)
LORA_FREEZE = ("vision/.*", "language/(?!.*/lora/).*")


def fine_tuning(arg, *, names, text, layers, layer_decay):
    """Returns what the fine-tunings share (transfers/blip2_*.py), in which the vision transformer trains, too.

    With a `layer_decay` below 1 the rate of the last of so many layers is that times the others', and so on down to the
    embeddings, as salesforce/LAVIS makes its groups (models/blip2_models/blip2.py: get_optimizer_params).
    """
    config = training(arg, names=names, warmup=1000, text=text)
    if not arg.smoke:
        config.total_epochs = 5
        config.evaluate_epochs = 1
    mults = ()
    if layer_decay != 1:
        rates = tuple(layer_decay ** (layers - i) for i in range(layers))
        mults = (("vision/blocks/.*", rates), ("vision/.*", layer_decay ** (layers + 1)))
    config.optim.update(lr=1e-5, start_lr=1e-8, end_lr=0.0, stairs=5, lr_mults=mults)
    return config


def training(arg, *, names, warmup, text):
    """Returns what all recipes share: `names` are sets of datasets/paper.py, `text` the ops of a text of theirs."""
    config = ConfigDict()
    config.seed, config.num_workers, config.batch_size = 42, 0 if arg.smoke else 8, arg.batch
    if arg.smoke:
        config.total_steps = 2
    else:
        config.total_epochs = 10
    config.tokenizer, config.init = arg.tokenizer, arg.init or None
    look = f"labels_for('none')|decode|random_resized_crop({arg.res}, scale=(0.5, 1.0))|flip()"
    config.data = {
        name: dict(**paper.find(arg.data, name, "none"), pp=f"{look}|{text}", weight="size") for name in names
    }
    config.frozen_dtype = "float32" if arg.smoke else "bfloat16"
    # The rate climbs at first, and is then set once an epoch.
    rate = dict(
        lr=1e-4, start_lr=1e-6, end_lr=1e-5, schedule="cosine", stairs=10, warmup_steps=1 if arg.smoke else warmup
    )
    config.optim = dict(name="adamw", weight_decay=0.05, wd_mults=NO_DECAY, **rate)
    config.accumulate, config.mesh, config.distributed = 1, dict(data=-1, fsdp=1, tensor=1), None
    config.sharding = "replicated"
    config.tasks, config.evals = {}, {}
    config.log_steps = 1 if arg.smoke else 50
    if not arg.smoke:
        config.save_epochs = 1
    config.checkpoint = dict(keep=1)
    return config
