"""PaliGemma beside transformers' PyTorch code: a part of tools.bench.

    decode     prompts of 4, 8, 12 and 16 tokens, each with a photo: 32 tokens each, greedily
    question   one prompt of 12 tokens with one photo, 32 tokens
    questions  eight of them about one photo, which is encoded once
    training   a step on 2 photos and texts of 64 tokens that trains the attention of Gemma, by gradient descent

The model is SigLIP So400m/14 whole, the first four layers of Gemma 2B, and its whole vocabulary; float32, fresh
weights, all cores (with --one-core one, in the processor's time). Ours and theirs are worker processes
(reference/run_paligemma.py), three rounds of each in turn; the fastest of each counts. Each holds 5.5 GB of weights.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import config, decode, models, runtime
from prismer_jax.batch import prompts
from prismer_jax.models.paligemma.model import VARIANTS
from prismer_jax.training.step import PRNG

from .reference.serving import serve
from .worker import Row, compare, steps_of, training_step

LAYERS, PROMPTS, MAX_NEW, BATCH, TEXT, PREFIX = 4, (4, 8, 12, 16), 32, 2, 64, 8
QUESTIONS, QUESTION = 8, 12  # about one photo, and the tokens of each


ROWS = {
    "decode": Row("greedy decoding, 4 photos, tokens/s", len(PROMPTS) * MAX_NEW, 1.3),
    "question": Row("a question about a photo, answers/s", 1, 1.3),
    "questions": Row("8 questions about a photo, answers/s", QUESTIONS, 1.3),
    "training": Row("training step, attention of Gemma alone, photos/s", BATCH, 1.1),
}


def measure(python: str | pathlib.Path | None, **options: Any) -> list[dict[str, Any]]:
    """Prints the table, and returns it; `options` are those of `worker.compare`."""
    return compare("PaliGemma, 4 layers of Gemma, float32", sys.modules[__name__], python, **options)


def settings() -> dict[str, Any]:
    """Returns what the other side has to know: sizes by transformers' names, and what is done."""
    vision, language = VARIANTS["pt_224"]["vision"], VARIANTS["pt_224"]["language"]
    names = dict(width="hidden_size", mlp_dim="intermediate_size", heads="num_attention_heads")
    sides = {
        side: {theirs: fields[ours] for ours, theirs in names.items()}
        for side, fields in (("vision", vision), ("language", language))
    }
    sides["vision"] |= dict(
        num_hidden_layers=vision["layers"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        projection_dim=language["width"],
    )
    sides["language"] |= dict(
        num_hidden_layers=LAYERS,
        num_key_value_heads=language["kv_heads"],
        head_dim=language["head_dim"],
        vocab_size=language["vocab_size"],
    )
    asked = dict(questions=QUESTIONS, question=QUESTION)
    return dict(sides, prompts=PROMPTS, max_new=MAX_NEW, batch=BATCH, text=TEXT, prefix=PREFIX, **asked)


# ---------------------------------------------------------------------------------------------------------------------
# Our worker
# ---------------------------------------------------------------------------------------------------------------------


def photos_and(ids: np.ndarray, valid: np.ndarray, size: int, photos: int | None = None) -> dict[str, np.ndarray]:
    """Returns photos, as many as prompts or fewer, and these prompts [b t], which see all of themselves."""
    image = np.random.default_rng(0).integers(0, 256, (photos or len(ids), size, size, 3), np.uint8)
    return {"image": image, **prompts(ids, valid), "mask_ar": np.zeros(ids.shape, np.int32)}


def decoding(lengths: Sequence[int] = PROMPTS, photos: int | None = None) -> Callable[[], Any]:
    model = models.build("paligemma", variant="pt_224", language=dict(layers=LAYERS))
    variables = jax.jit(model.init_variables)(jax.random.key(0, impl=PRNG))  # Threefry needs twice the memory
    ids = np.random.default_rng(0).integers(3, 256_000, (len(lengths), max(lengths)), np.int32)
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    batch = photos_and(np.where(valid, ids, 0), valid, model.image_size, photos)
    say = functools.partial(decode.generate, model, variables, batch, method="greedy", pad=0, eos=-1, max_new=MAX_NEW)
    return lambda: np.asarray(say()[0])


def training(remat: str = "none", batch_size: int = BATCH, length: int = TEXT) -> Callable[[], Any]:
    """The step of transfers/paligemma.py:t4, in float32 throughout and, unless told, all kept for the backward pass."""
    changes = ["model.vision.dtype=float32", f"model.remat={remat}", "frozen_dtype=float32"]
    recipe = config.plain(config.load("transfers/paligemma.py:t4", changes))
    recipe["model"]["language"]["layers"] = LAYERS
    step = training_step(config.Section(recipe), batch_size)
    ids = np.random.default_rng(0).integers(3, 256_000, (batch_size, length), np.int32)
    batch = photos_and(ids, ids >= 0, step.model.image_size)
    said = np.broadcast_to(np.arange(length) >= PREFIX, ids.shape)
    batch |= {"mask_ar": said.astype(np.int32), "mask_loss": said.astype(np.float32)}
    return steps_of(step, batch)


OURS: dict[str, Callable[[], Callable[[], Any]]] = {
    "decode": decoding,
    "question": functools.partial(decoding, [QUESTION]),
    "questions": functools.partial(decoding, [QUESTION] * QUESTIONS, photos=1),
    "training": training,
}

if __name__ == "__main__":
    runtime.use_compilation_cache()
    serve(OURS[sys.argv[1]])
