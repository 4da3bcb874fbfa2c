"""nanoVLM: a ViT, a projector and a small language model.

    python -m prismer_jax.train --config configs/nanovlm.py:scenes --workdir runs/nanovlm_scenes

Arguments, as in nanovlm.py:scenes,experts=none:
  scenes: from scratch on rendered scenes, in minutes on a laptop, with the data and the evaluators of the quickstart.
  experts: whose label maps are added to the image's tokens; 'all' by default, 'none' for nanoVLM as it is.
  smoke: all of it in less than a minute, to see that it works.

Sources: huggingface/nanoVLM, models/config.py and train.py.
"""

from configs import quickstart
from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes


def get_config(arg=None):
    arg = parse_arg(arg, scenes=True, experts="all", smoke=False)
    config = quickstart.get_config(f"experts={arg.experts},smoke={arg.smoke}")
    config.model = dict(
        name="nanovlm",
        variant="tiny",
        vision=dict(image_size=quickstart.SIZE, patch_size=8, width=96, layers=3, heads=4, mlp_dim=384),
        language=dict(width=96, layers=4, heads=4, kv_heads=2, mlp_dim=256, vocab_size=640, initializer_range=0.06),
        shuffle=2,
        image_token=None,
        experts=arg.experts,
        stem_width=96,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    return config
