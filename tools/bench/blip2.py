"""BLIP-2 beside transformers' PyTorch code: a part of tools.bench.

    captions      4 photos, 5 beams of 30 tokens each
    captions_t5   the same by FlanT5-base
    rerank        128 texts of 32 tokens matched with one photo, whose tokens are at hand, as retrieval ranks again
    stage2        a step on 4 photos and texts of 32 tokens that trains Q-Former and projection
    stage1        a step on as many that trains the Q-Former to compare, to match and to write; transformers has none

The model is a ViT of 12 blocks of 768 at 224 pixels, BLIP-2's whole Q-Former, and OPT-350M; float32, fresh weights, all
cores (with --one-core one, in the processor's time). Ours and theirs are worker processes (reference/run_blip2.py),
three rounds of each in turn; the fastest of each counts. tools/bench/lavis.py has the same beside salesforce/LAVIS.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prismer_jax import config, decode, models, runtime
from prismer_jax.batch import prompts
from prismer_jax.decode import matching
from prismer_jax.models.blip2 import config_json
from prismer_jax.training.step import PRNG

from .reference.serving import serve
from .worker import Row, compare, steps_of, training_step

BATCH, BEAMS, MAX_NEW, TEXT, PAIRS = 4, 5, 30, 32, 128
VISION = dict(width=768, layers=12, heads=12, mlp_dim=3072)
ROWS = {
    "captions": Row("captions with 5 beams, 30 tokens, photos/s", BATCH, 1.5),
    "captions_t5": Row("the same by FlanT5-base, photos/s", BATCH, 1.5),
    "rerank": Row("128 texts matched with a photo, pairs/s", PAIRS, 1.4),
    "stage2": Row("training step of stage 2, photos/s", BATCH, 1.1),
    "stage1": Row("training step of stage 1, photos/s", BATCH, 1.1),
}
LACKING = ["stage1"]  # in transformers


def measure(python: str | pathlib.Path | None, **options: Any) -> list[dict[str, Any]]:
    """Prints the table, and returns it; `options` are those of `worker.compare`."""
    return compare("BLIP-2, small ViT, OPT-350M, float32", sys.modules[__name__], python, lacking=LACKING, **options)


def settings() -> dict[str, Any]:
    """Returns what the other side has to know: transformers' configs of the models, and what is done."""
    configs = {kind: config_json.of(model(lm)) for kind, lm in (("opt", "opt350m"), ("t5", "flant5base"))}
    sizes = dict(batch=BATCH, beams=BEAMS, max_new=MAX_NEW, text=TEXT, pairs=PAIRS)
    return dict(**configs, **sizes, words=matcher().vocab_size)


def model(lm: str = "opt350m") -> Any:
    return models.build(**recipe(lm)["model"])


def matcher() -> Any:
    return models.build("blip2", variant="pretrained", vision=dict(VISION, image_size=224))


def recipe(lm: str = "opt350m") -> dict[str, Any]:
    """Returns the recipe of stage 2, or with '' that of stage 1, in float32 throughout; the backward pass has all."""
    changes = ["model.dtype=float32", "model.remat=none", "frozen_dtype=float32"]
    plain = config.plain(config.load(f"configs/blip2_stage2.py:lm={lm}" if lm else "configs/blip2_stage1.py", changes))
    plain["model"]["vision"] |= VISION
    return plain


# ---------------------------------------------------------------------------------------------------------------------
# Our worker
# ---------------------------------------------------------------------------------------------------------------------


def photos_and(length: int) -> dict[str, np.ndarray]:
    """Returns a batch of photos with texts of so many tokens."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 30_000, (BATCH, length), np.int32)
    return {"image": rng.integers(0, 256, (BATCH, 224, 224, 3), np.uint8), **prompts(ids, ids >= 0)}


def captions(lm: str = "opt350m", **how: Any) -> Callable[[], Any]:
    captioner = model(lm)
    variables = jax.jit(captioner.init_variables)(jax.random.key(0, impl=PRNG))
    how = dict(method="beam", num_beams=BEAMS, pad=1, eos=-1, max_new=MAX_NEW, length="new") | how
    say = functools.partial(decode.generate, captioner, variables, photos_and(1), **how)
    return lambda: np.asarray(say()[0])


def rerank() -> Callable[[], Any]:
    comparer, at_once = matcher(), 16  # texts a call, as the evaluator has them
    variables = jax.jit(comparer.init_variables)(jax.random.key(0, impl=PRNG))
    ids = np.random.default_rng(0).integers(4, 30_000, (1, PAIRS, TEXT), np.int32)
    photo = photos_and(1)["image"][:1]

    def keys_of(model: Any, tokens: Any) -> Any:
        return model.queried(tokens)[1]

    tokens = jax.jit(lambda v: comparer.apply(v, {"image": photo}, method="image_tokens"))(variables)
    read = jax.jit(lambda v, tokens: comparer.apply(v, tokens, method=keys_of))

    def match() -> list[Any]:
        keys = read(variables, tokens)
        parts = [ids[:, start : start + at_once] for start in range(0, PAIRS, at_once)]
        return jax.block_until_ready([matching.match(comparer, variables, keys, part, part > 0)[1] for part in parts])

    return match


def training(lm: str) -> Callable[[], Any]:
    step = training_step(config.Section(recipe(lm)), BATCH)
    return steps_of(step, photos_and(TEXT) | {"mask_loss": np.ones((BATCH, TEXT), np.float32)})


OURS: dict[str, Callable[[], Callable[[], Any]]] = {
    "captions": captions,
    "captions_t5": functools.partial(captions, "flant5base", pad=0, length="start"),
    "rerank": rerank,
    "stage2": functools.partial(training, "opt350m"),
    "stage1": functools.partial(training, ""),
}

if __name__ == "__main__":
    runtime.use_compilation_cache()
    serve(OURS[sys.argv[1]])
