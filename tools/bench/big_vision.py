"""PaliGemma beside big_vision's JAX code: `python -m tools.bench paligemma --big-vision CHECKOUT`.

    decode     that of tools.bench.paligemma: prompts of 4 to 16 tokens, each with a photo, 32 tokens each, greedily
    training   its step on 2 photos and texts of 64 tokens that trains the attention of Gemma, where, as in the recipes
               of both, the backward pass computes each layer anew; and XLA's count of the step's temporary memory
    training_8 the same on 8 photos and texts of 128 tokens, the batch of the recipe (finetune_paligemma.ipynb)

The smaller step's temporaries are the same with a vocabulary of 1,024, on both sides; the larger one's are not.

The model, the rounds and what counts are those of tools.bench.paligemma; theirs is reference/run_big_vision.py, which
keeps its keys and values in float32, as ours does.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from typing import Any

from prismer_jax import runtime
from prismer_jax.errors import UserError
from prismer_jax.models.paligemma.model import VARIANTS, WORDS

from . import paligemma
from .paligemma import BATCH, LAYERS, MAX_NEW, PREFIX, PROMPTS, TEXT
from .reference.serving import serve
from .worker import Row, compare

RECIPE = (8, 128)  # photos, and tokens of their texts
MODEL = "big_vision/models/proj/paligemma/paligemma.py"
MODULES = "jax, flax, optax, orbax.checkpoint, einops, ml_collections"  # that it imports

ROWS = {
    "decode": paligemma.ROWS["decode"]._replace(target=1.0),
    "training": Row("training step, layers computed anew, photos/s", BATCH, 1.0),
    "training_8": Row("the same, 8 photos, texts of 128 tokens, photos/s", RECIPE[0], 1.0, temporaries=0.6),
}


def measure(checkout: pathlib.Path, python: str | pathlib.Path | None, **options: Any) -> list[dict[str, Any]]:
    """Prints the table, and returns it; `options` are those of `worker.compare`.

    Args:
      checkout: one of google-research/big_vision.
      python: an interpreter with jax, flax, einops, ml_collections and orbax.

    Raises:
      UserError: it is no checkout of big_vision; a worker ends early.
    """
    if not (checkout / MODEL).is_file():
        raise UserError(f"{checkout}: no checkout of google-research/big_vision: it has no {MODEL}.")
    more = dict(checkout=str(checkout.resolve()))
    return compare("PaliGemma, 4 layers of Gemma, float32", sys.modules[__name__], python, more=more, **options)


def settings() -> dict[str, Any]:
    """Returns what the other side has to know: sizes by big_vision's names, and what is done."""
    vision, language = VARIANTS["pt_224"]["vision"], VARIANTS["pt_224"]["language"]
    sizes = [{ours: fields[ours] for ours in ("width", "mlp_dim")} for fields in (vision, language)]
    img = sizes[0] | dict(depth=vision["layers"], num_heads=vision["heads"], patch_size=[vision["patch_size"]] * 2)
    llm = sizes[1] | dict(depth=LAYERS, num_heads=language["heads"], num_kv_heads=language["kv_heads"])
    llm |= dict(head_dim=language["head_dim"], vocab_size=language["vocab_size"])
    done = dict(prompts=PROMPTS, max_new=MAX_NEW, batch=BATCH, text=TEXT, prefix=PREFIX, recipe=RECIPE)
    return dict(img=img, llm=llm, image_size=vision["image_size"], words=WORDS, **done)


OURS = {
    "decode": paligemma.decoding,
    "training": functools.partial(paligemma.training, "full"),
    "training_8": functools.partial(paligemma.training, "full", *RECIPE),
}

if __name__ == "__main__":
    runtime.use_compilation_cache()
    serve(OURS[sys.argv[1]])
