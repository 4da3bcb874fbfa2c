"""NoCaps: captions of objects that COCO never names, by the model that was fine-tuned on COCO.

    python -m prismer_jax.evaluate --config transfers/nocaps.py --checkpoint runs/coco

Nothing is trained on NoCaps. Training with this file is what coco_caption.py does, as in the reference, with NoCaps at
its end. Arguments, as in nocaps.py:size=large,split=test, are those of configs/common.py, and:
  split: 'val', which is scored here, or 'test', whose predictions/nocaps.json is what the benchmark's server takes.
  zero_shot: as in transfers/coco_caption.py.

Source: NVlabs/prismer, configs/caption.yaml, dataset/caption_dataset.py. See docs/reproduce.md.
"""

from configs import common
from prismer_jax.datasets import paper
from transfers import coco_caption


def get_config(arg=None):
    arg = common.arguments(arg, split="val", zero_shot=False)
    coco = ",".join(f"{name}={value}" for name, value in vars(arg).items() if name != "split")
    config = coco_caption.get_config(coco)
    held_out = paper.find(arg.data, f"nocaps_{arg.split}", arg.experts)
    config.evals = dict(nocaps=dict(config.evals.test, data=held_out, predict_only=arg.split == "test"))
    if not arg.smoke:
        del config.evaluate_epochs  # only at the end: the last epoch is taken
    del config.checkpoint.best_metric
    return config
