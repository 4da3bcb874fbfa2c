"""Multiple choice about photos with a converted or trained nanoVLM: MMStar, or any list of datasets/choices.py.

    python -m prismer_jax.evaluate --config transfers/mmstar.py:model=DIR,data=mmstar.jsonl --checkpoint DIR

Arguments, as in mmstar.py:model=models/nanovlm_222m,method=rank:
  model: a converted model or an export, whose own way of looking at photos is taken.
  data: the list.
  method: 'greedy' takes the letter with which the likeliest answer begins, 'rank' the likeliest letter; 'reference'
    scores as huggingface/nanoVLM did at v0.1: five sampled tokens in which the right letter occurs anywhere.
  smoke: trains a few steps on rendered scenes and asks the result questions with two options.

Source: huggingface/nanoVLM at v0.1, data/datasets.py (prompt), train.py (test_mmstar).
"""

from ml_collections import ConfigDict

from configs import nanovlm
from prismer_jax import checkpoint, registry
from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature

LETTER = "Answer only with the letter!"
LONGEST = 512  # tokens of a question with its options, beside those of the photo


def asked(pp):
    """Returns a task's chain of ops with the question put as the original puts it."""
    calls = []
    for name, args, options in registry.parse(pp):
        if name == "chat":
            args = (args[0] + LONGEST, *args[1:])
            if plain := options.get("style") == "answer":
                options = {**options, "style": "plain"}
            wording = f"Question: {{question}} \n{LETTER} \nAnswer:" if plain else f"{{question}}\n{LETTER}"
            calls[-1] = f"ask(wording={wording!r})"
        calls.append(f"{name}({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in options.items())])})")
    return "|".join(calls)


def get_config(arg=None):
    arg = parse_arg(arg, model="models/nanovlm_222m", data="data/mmstar.jsonl", method="greedy", smoke=False)
    if arg.smoke:
        config = nanovlm.get_config("scenes,smoke")
        config.checkpoint.best_metric = "mmstar/accuracy"
        pp, data, letters = config.tasks.question.pp, f"{miniature.folder()}/choices.jsonl", ""
    else:
        description = checkpoint.description(arg.model)
        config = ConfigDict(dict(model=description["model"], tasks=description["tasks"]))
        kind = description["tokenizer"].partition(":")[0]  # files of a tokenizer lie beside the model
        config.tokenizer = kind if kind == "scenes" else f"{kind}:{description['folder']}"
        pp, data, letters = asked(description["tasks"]["question"]["pp"]), arg.data, "ABCD"
    config.evals = dict(
        mmstar=dict(
            type="choice",
            data=dict(name="choices", path=data, letters=letters),
            pp=pp,
            batch_size=8,
            method=arg.method,
        )
    )
    return config
