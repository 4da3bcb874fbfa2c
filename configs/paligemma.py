"""PaliGemma: a SigLIP, one linear layer and a Gemma; small, and from scratch.

    python -m prismer_jax.train --config configs/paligemma.py:scenes --workdir runs/paligemma_scenes
    python -m prismer_jax.train --config configs/paligemma.py:scenes,objects --workdir runs/paligemma_objects
    python -m prismer_jax.train --config configs/paligemma.py:negative,init=runs/paligemma_scenes --workdir runs/moved

Arguments, as in paligemma.py:scenes,experts=none:
  scenes: on rendered scenes, in minutes on a laptop, with the data and the evaluators of the quickstart.
  objects: also learns to `detect` and to `segment`, with a codec of masks that is trained first, in a minute or two.
  experts: whose label maps are added to the image's tokens; 'all' by default, 'none' for PaliGemma as it is.
  negative: moves the trained model `init` to another style, photos in negative, in `steps` at the rate `lr`: all of it,
    or, with `rank` above 0, adapters of that rank, biases and norms (docs/lora.md).
  bits: nf4 or int8, of the weights of both towers' blocks, which are then not trained: with `rank`, and for
    tools.quantize and prismer_jax.evaluate (docs/lora.md).
  smoke: all of it in a minute or two, to see that it works.

The published models are fine-tuned by transfers/paligemma.py.
"""

from configs import quickstart
from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes
from prismer_jax.pp import location_tokens
from prismer_jax.training import mask_codec

WORDS = 640  # of the scenes' own tokenizer
ALL_BUT_FEW = (r"(?!.*/lora/|.*(bias|scale)$).*",)  # a new style moves what biases (arXiv 2106.10199) and norms add


def get_config(arg=None):
    style = dict(negative=False, init="", rank=0, lr=0.0, steps=300)
    arg = parse_arg(arg, scenes=True, objects=False, experts="all", bits="", smoke=False, **style)
    config = quickstart.get_config(f"experts={arg.experts},places=False,smoke={arg.smoke}")
    # Texts are those of the quickstart, several in a row, each of which sees the image and itself from left to right.
    config.model = dict(
        name="paligemma",
        variant="tiny",
        vision=dict(image_size=quickstart.SIZE, patch_size=16, width=96, layers=3, heads=4, mlp_dim=384),
        language=dict(width=96, layers=4, heads=4, kv_heads=1, head_dim=24, mlp_dim=256, vocab_size=WORDS),
        experts=arg.experts,
        stem_width=96,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    config.model.language.initializer_range = 0.06
    if arg.objects:
        with_objects(config, arg)
    if arg.negative:
        in_negative(config, arg)
    if arg.bits:
        config.model.quantize = dict(match="(language|vision)/blocks/.*", kind=arg.bits)
    return config


def in_negative(config, arg):
    """Moves a trained model to photos in negative, whole or by adapters beside all its dense layers' kernels."""
    for part in (*config.data.values(), *config.tasks.values(), *config.evals.values()):
        part.pp = part.pp.replace("|decode|", "|decode|negative()|")
    if arg.init:
        config.init = arg.init
    config.total_steps = 20 if arg.smoke else arg.steps
    config.optim = dict(name="adamw", lr=arg.lr or 1e-3, weight_decay=0.0, clip_norm=1.0, warmup_percent=5.0)
    if arg.rank:
        config.model.lora = dict(match="(vision|language|projector)/.*", rank=arg.rank, alpha=2.0 * arg.rank)
        del config.freeze  # the type of a value cannot change
        config.freeze = ALL_BUT_FEW


def with_objects(config, arg):
    """Adds boxes and masks of the scenes' objects to what a config learns and is evaluated by."""
    config.tokenizer = location_tokens.of_scenes()
    config.model.language.vocab_size = WORDS + len(location_tokens.PIECES)
    codec = mask_codec.of_scenes(count=60, steps=20) if arg.smoke else mask_codec.of_scenes()
    config.files = [codec]  # its checkpoints carry it
    find = f"{mask_codec.chain_of_scenes('all')}|labels_for('{arg.experts}')"
    look = f"{find}|stretch({quickstart.SIZE}, label_size={quickstart.LABEL_SIZE})"
    detect, segment = (f"{look}|{op}|prefix_lm({quickstart.LENGTH})" for op in ("detect()", f"segment({codec!r})"))
    train, held_out = config.data.captions, config.evals.caption.data
    plain = {key: train[key] for key in train if key not in ("pp", "weight")}
    config.data.detect = dict(**plain, pp=detect, weight=2.0)  # as questions have: places are learnt late
    config.data.segment = dict(**plain, pp=segment, weight=2.0)
    asked = dict(data=held_out, batch_size=config.batch_size, method="greedy", max_new=4 if arg.smoke else 80)
    config.evals.detect = dict(type="detection", pp=detect.replace("detect()", "detect(answer=False)"), **asked)
    silent = segment.replace(f"{codec!r}", f"{codec!r}, answer=False")
    config.evals.segment = dict(type="refcoco", codec=codec, pp=silent, **asked)
    if not arg.smoke:
        config.total_steps = 2 * config.total_steps
