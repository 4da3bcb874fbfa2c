"""What the configs of the paper share: their arguments, how a photo becomes an input, the model and its training.

configs/pretrain.py and the files of transfers/ take these arguments, besides their own:
  size: base, large or huge.
  experts: all, none (PrismerZ), or some, such as depth+edge.
  res: pixels of a photo's side.
  data: folder of lists, photos and labels, or of finished data sets; see prismer_jax/datasets/paper.py.
  init: the model to start from: a workdir, or a converted checkpoint. Its positions are resized to `res`.
  tokenizer: folder of RoBERTa's vocab.json and merges.txt.
  smoke: all of it in less than a minute, on a dozen rendered scenes, to see that it works.

Sources: NVlabs/prismer, configs/*.yaml and dataset/*.py.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper

ARGUMENTS = dict(
    size="base",
    experts="all",
    res=480,
    data="datasets",
    init="runs/pretrain",
    tokenizer="weights/tokenizer",
    smoke=False,
)


def arguments(arg, **own):
    """Parses the shared arguments and a config's own; `own` may also give a shared one another default."""
    arg = parse_arg(arg, **{**ARGUMENTS, **own})
    if arg.smoke:
        arg.size, arg.res, arg.data = "tiny", 64, miniature.folder()
    return arg


def training(arg, *, batch_size, epochs, freeze, seed=42):
    """Returns the config of a training that still lacks its data, optimiser, tasks and evaluators.

    Args:
      arg: the parsed arguments.
      batch_size: examples a step.
      epochs: passes over the examples; an epoch has every caption or question once, not every photo.
      freeze: which parameters stay as they are, as in prismer_jax/models/prismer/model.py.
      seed: of the order of the examples, of augmentation and of new parameters.
    """
    config = ConfigDict()
    config.seed = seed
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size = 8 if arg.smoke else batch_size
    if arg.smoke:
        config.total_steps = 2
    else:
        config.total_epochs = epochs
    config.tokenizer = "scenes" if arg.smoke else f"roberta:{arg.tokenizer}"

    config.model = dict(name="prismer", variant=arg.size, experts=arg.experts, image_size=arg.res)
    config.init = None if arg.smoke else arg.init
    if arg.smoke:
        config.model.decoder = dict(vocab_size=640)
    else:
        config.model.dtype = "bfloat16"  # the reference: fp16 with a scaled loss; float32 is slower and safe anywhere
        config.model.remat = "dots"
    config.freeze = freeze

    config.loss = dict(name="cross_entropy", label_smoothing=0.1, normalize="none")  # summed over a text's tokens
    config.accumulate = 1  # parts of a batch one after the other; BatchNorm of the stems sees each part alone
    # Data-parallel; --config.sharding=zero3 shares parameters and optimiser state among the devices.
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.distributed = None  # True: several processes, found through the cluster
    config.sharding = "replicated"
    config.prng = "rbg"  # threefry2x32 where there are many devices: docs/scaling.md

    config.log_steps = 1 if arg.smoke else 50
    config.checkpoint = dict(keep=1)
    config.report = dict(samples=4 if arg.smoke else 12)
    config.profile = dict(first=0)  # 10: of the tenth step and the next four, for TensorBoard
    return config


def look(arg):
    """Returns the ops that resize a photo and its labels, for evaluation and use."""
    return f"labels_for('{arg.experts}')|decode|resize({arg.res}, {_label_size(arg)})"


def augment(arg, largest=1.0):
    """Returns the ops that crop, flip and distort a photo and its labels; crops have 0.5 to `largest` of the area."""
    # flip(normals='reference') mirrors normals without turning them, as the reference does.
    crop = f"random_resized_crop({arg.res}, {_label_size(arg)}, scale=(0.5, {largest}))"
    return f"labels_for('{arg.experts}')|decode|{crop}|flip()|randaugment(2, 5)"


def mixture(arg, names, pp):
    """Returns the data section of several of the paper's sets, which are drawn from as if they were one."""
    return {name: dict(**paper.find(arg.data, name, arg.experts), pp=pp, weight="size") for name in names}


def evaluator(arg, name, *, type, batch_size=256, **settings):
    """Returns the section of an evaluator of texts on one of the paper's sets."""
    data = paper.find(arg.data, name, arg.experts)
    return dict(type=type, data=data, style="reference", batch_size=8 if arg.smoke else batch_size, **settings)


def _label_size(arg):
    return 64 if arg.smoke else 224  # pixels of a label map's side, whatever the photo's
