"""PaliGemma: a SigLIP, one linear layer and a Gemma; small, and from scratch.

    python -m prismer_jax.train --config configs/paligemma.py:scenes --workdir runs/paligemma_scenes

Arguments, as in paligemma.py:scenes,experts=none:
  scenes: on rendered scenes, in minutes on a laptop, with the data and the evaluators of the quickstart.
  experts: whose label maps are added to the image's tokens; 'all' by default, 'none' for PaliGemma as it is.
  smoke: all of it in less than a minute, to see that it works.

The published models are fine-tuned by transfers/paligemma.py.
"""

from configs import quickstart
from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes


def get_config(arg=None):
    arg = parse_arg(arg, scenes=True, experts="all", smoke=False)
    config = quickstart.get_config(f"experts={arg.experts},smoke={arg.smoke}")
    # Texts are those of the quickstart, several in a row, each of which sees the image and itself from left to right.
    config.model = dict(
        name="paligemma",
        variant="tiny",
        vision=dict(image_size=quickstart.SIZE, patch_size=16, width=96, layers=3, heads=4, mlp_dim=384),
        language=dict(width=96, layers=4, heads=4, kv_heads=1, head_dim=24, mlp_dim=256, vocab_size=640),
        experts=arg.experts,
        stem_width=96,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    config.model.language.initializer_range = 0.06
    return config
