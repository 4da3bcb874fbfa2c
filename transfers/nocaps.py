"""NoCaps: captions of objects that COCO never names, by the model that was fine-tuned on COCO.

    python -m prismer_jax.evaluate --config transfers/nocaps.py --checkpoint runs/coco

Nothing is trained on NoCaps. Training with this file is what coco_caption.py does, as in the reference, with NoCaps at
its end. Arguments, as in nocaps.py:size=large,split=test:
  split: 'val', which is scored here, or 'test', whose predictions/nocaps.json is what the benchmark's server takes.
  size, experts, res, data, init, zero_shot, tokenizer, smoke: as in transfers/coco_caption.py.

Source: NVlabs/prismer, configs/caption.yaml, dataset/caption_dataset.py. See docs/reproduce.md.
"""

import pathlib
import runpy

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper

coco = runpy.run_path(str(pathlib.Path(__file__).with_name("coco_caption.py")))["get_config"]


def get_config(arg=None):
    arg = parse_arg(
        arg,
        size="base",
        experts="all",
        res=480,
        data="datasets",
        init="runs/pretrain",
        split="val",
        zero_shot=False,
        tokenizer="weights/tokenizer",
        smoke=False,
    )
    config = coco(",".join(f"{name}={value}" for name, value in vars(arg).items() if name != "split"))
    held_out = paper.find(miniature.folder() if arg.smoke else arg.data, f"nocaps_{arg.split}", arg.experts)
    config.evals = dict(nocaps=dict(config.evals.test, data=held_out))
    if not arg.smoke:
        del config.evaluate_epochs  # only at the end: the last epoch is taken
    config.checkpoint = dict(keep=1)
    return config
