"""Multiple choice about photos with a converted or trained nanoVLM: MMStar, or any list of datasets/choices.py.

    python -m prismer_jax.evaluate --config transfers/mmstar.py:model=DIR,data=mmstar.jsonl --checkpoint DIR

Arguments, as in mmstar.py:model=models/nanovlm_222m,method=rank:
  model: a converted model or an export, whose own way of looking at photos is taken.
  data: the list.
  method: 'greedy' takes the letter with which the likeliest answer begins, 'rank' the likeliest letter; 'reference'
    scores as huggingface/nanoVLM did at v0.1: five sampled tokens in which the right letter occurs anywhere.
  smoke: trains two steps on made-up talks and asks the result questions with two options.
"""

from configs import nanovlm
from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature


def get_config(arg=None):
    arg = parse_arg(arg, model="models/nanovlm_222m", data="data/mmstar.jsonl", method="greedy", smoke=False)
    if arg.smoke:
        arg.data = f"{miniature.folder()}/choices.jsonl"
        config = nanovlm.get_config("variant=222m,smoke")
        config.checkpoint = dict(keep=1, best_metric="mmstar/accuracy")
    else:
        config = nanovlm.converted(arg.model)
    config.evals = dict(mmstar=nanovlm.multiple_choice(config.tasks.question.pp, arg.data, arg.method))
    return config
