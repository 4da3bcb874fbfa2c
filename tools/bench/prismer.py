"""Prismer beside the official PyTorch code (NVlabs/prismer): a part of tools.bench.

    encoder       4 photos with the labels of six experts, to what the text decoder reads
    caption       4 photos with labels and the prefix 'A picture of': three beams of 20 tokens, the prefix among them
    decode        the same without the encoder
    vqa_rank16    4 encoded photos with a question each: the best of 3,128 answers, of which 16 are scored whole
    vqa_rank128   one encoded photo with a question: the same, of which 128 are scored whole
    training      a step on 2 photos with captions of 20 tokens, the vision transformer frozen but for its adaptors

The model is PrismerBASE whole, at 480 pixels, in float32 with fresh weights, on all cores (with --one-core on one, in
the processor's time). Ours and theirs are worker processes (reference/run_prismer.py), three rounds of each in turn;
the fastest of each counts. No text ends early. Sources: NVlabs/prismer, configs/caption.yaml and configs/vqa.yaml.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax import config, decode, labels, models, runtime
from prismer_jax.batch import Batch, prompts
from prismer_jax.decode.beam import beam_search
from prismer_jax.decode.ranking import rank
from prismer_jax.errors import UserError
from prismer_jax.training.step import PRNG

from .reference.serving import serve
from .worker import Row, Work, compare, steps_of, training_step

BATCH, TRAINED, LENGTH, PREFIX = 4, 2, 20, 4  # photos, photos of a step; tokens of a caption, and of its prefix
TURNS = LENGTH - PREFIX - 1  # of the loop that writes it: what follows the prefix is read with it
BEAMS, SHORTEST = 3, 8  # of captions; tokens of the shortest, prefix among them
QUESTION, LONGEST = 12, 6  # tokens of a question; of the longest answer with its end
LENGTHS, BEGINNINGS = (1357, 1217, 501, 43, 10), 1773  # answers of 1, 2 ... tokens; tokens that answers begin with
ANSWERS = sum(LENGTHS)
VARIANT, SIZE, LABEL_SIZE, INSTANCES = "base", 480, 224, 8  # pixels of both sides, and what a map of ids shows
PAD, END, WORDS = 1, 2, 50265  # RoBERTa's

COMMIT = "4f27ab3"  # of NVlabs/prismer
MODELS_SHA256 = (
    "8795d6ee6b4dbe794f89fa67cf8f9e3044e24f5d5379611aafae55116efff0f7"  # of model/**/*.py there, sorted by path
)

ROWS = {
    "encoder": Row("vision encoder with six experts, photos/s", BATCH, 1.3),
    "caption": Row("captions with 3 beams, 20 tokens, photos/s", BATCH, 5.0),
    "decode": Row("the same without the encoder, photos/s", BATCH, 20.0),
    "vqa_rank16": Row("ranking of 3,128 answers, k=16, questions/s", BATCH, 8.0),
    "vqa_rank128": Row("ranking of 3,128 answers, k=128, questions/s", 1, 60.0),
    "training": Row("training step with freeze_vision, photos/s", TRAINED, 1.5),
}


def measure(reference: pathlib.Path | None, python: str | pathlib.Path, **options: Any) -> list[dict[str, Any]]:
    """Prints the table, and returns it.

    Args:
      reference: a checkout of NVlabs/prismer; without it ours alone is measured.
      python: the interpreter for it, with PyTorch, transformers 4.26.1 and einops.
      options: those of `worker.compare`.

    Raises:
      UserError: the reference is no checkout, or one of another commit; a worker ends early.
    """
    if reference is not None:
        check_reference(reference)
    theirs, source = (python, reference.resolve()) if reference is not None else (None, None)
    heading = "PrismerBASE, 480 px, six experts, float32"
    return compare(heading, sys.modules[__name__], theirs, more={"source": str(source)}, **options)


def check_reference(reference: pathlib.Path) -> None:
    """Raises a UserError unless a folder has the official models as they are at COMMIT."""
    files = sorted((reference / "model").rglob("*.py"))
    if reference / "model/prismer_caption.py" not in files:
        raise UserError(f"{reference}: no checkout of NVlabs/prismer: it has no model/prismer_caption.py.")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if digest != MODELS_SHA256:
        raise UserError(
            f"{reference}: its models are not those of NVlabs/prismer at {COMMIT}; git -C {reference} checkout {COMMIT}"
        )


def settings() -> dict[str, Any]:
    """Returns what the other side has to know: what is done, and the texts, as ids."""
    answers = [[int(token) for token in row if token != PAD] for row in answer_list()]
    ranked = {f"vqa_rank{k}": (k, ROWS[f"vqa_rank{k}"].count) for k in (16, 128)}
    return dict(
        variant=f"prismer_{VARIANT}",
        experts=labels.PAPER,
        image_size=SIZE,
        label_size=LABEL_SIZE,
        instances=INSTANCES,
        batch=BATCH,
        trained=TRAINED,
        length=LENGTH,
        prefix=PREFIX,
        beams=BEAMS,
        shortest=SHORTEST,
        question=QUESTION,
        answers=answers,
        ranked=ranked,
    )


def answer_list() -> np.ndarray:
    """Returns ids [3128, 6] of answers of one to five tokens and their end, random but shaped like those of VQAv2.

    As many are as long as of the 3,128 most frequent answers of VQAv2 (airsplay/lxmert at 90a4fde,
    data/vqa/trainval_label2ans.json, without the empty one), capitalised in RoBERTa's tokens. These begin with 1,773
    tokens. Answers of one token all differ; the others begin with one that is drawn by Zipf's law with an exponent of
    0.7, so that 128 answers with the likeliest first tokens have as many different prefixes, 160, as those of VQAv2.
    """
    draw = np.random.default_rng(0)
    lengths = draw.permutation(np.repeat(np.arange(1, LONGEST), LENGTHS))
    ids = draw.integers(4, WORDS - 1, (ANSWERS, LONGEST), np.int32)
    begins = draw.choice(np.arange(4, WORDS - 1), BEGINNINGS, replace=False)
    weights = np.arange(1, BEGINNINGS + 1) ** -0.7
    ids[:, 0] = draw.choice(begins, ANSWERS, p=weights / weights.sum())
    ids[lengths == 1, 0] = draw.permutation(begins)[: LENGTHS[0]]
    place = np.arange(LONGEST)
    return np.where(place < lengths[:, None], ids, np.where(place == lengths[:, None], END, PAD)).astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------------
# Our worker
# ---------------------------------------------------------------------------------------------------------------------


def fresh() -> tuple[Any, Any]:
    """Returns the model and its fresh variables."""
    model = models.build("prismer", variant=VARIANT, image_size=SIZE)
    return model, jax.jit(model.init_variables)(jax.random.key(0, impl=PRNG))


def texts(count: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(4, WORDS - 1, (count, length), np.int32)
    return prompts(ids, ids >= 0)


def photos(count: int) -> dict[str, np.ndarray]:
    """Returns photos and the six label maps of the paper; those of ids show a few classes, instances and words."""
    draw = np.random.default_rng(0)
    batch = {"image": draw.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)}
    for expert in map(labels.EXPERTS.get, labels.PAPER):
        shape = (count, LABEL_SIZE, LABEL_SIZE, expert.channels)
        if expert.storage != "ids":
            batch[expert.key] = draw.integers(0, 256, shape, np.uint8)
            continue
        ids = draw.integers(-1, INSTANCES, (count, 8, 8, 1)).astype(np.uint8)  # -1: the background, 255
        batch[expert.key] = ids.repeat(LABEL_SIZE // 8, axis=1).repeat(LABEL_SIZE // 8, axis=2)
    classes = np.where(np.arange(labels.MAX_IDS) < INSTANCES, 0, -1)
    batch[labels.CLASSES_KEY] = np.tile(classes.astype(np.int32), (count, 1))
    batch[labels.WORDS_KEY] = draw.normal(size=(count, labels.MAX_IDS, labels.FEATURES)).astype(np.float16)
    return batch


def encoding() -> Work:
    model, variables = fresh()
    return Work(jax.jit(functools.partial(model.apply, method="encode")), (variables, photos(BATCH)))


def captions() -> Work:
    model, variables = fresh()
    how = dict(method="beam", num_beams=BEAMS, eos=-1, pad=PAD, max_len=LENGTH, min_len=SHORTEST)
    generate = functools.partial(decode.generate, model, **how)
    return Work(generate, (variables, photos(BATCH) | texts(BATCH, PREFIX)), TURNS)


def without_encoder(function: Callable[..., Any], count: int, length: int, **settings: Any) -> Work:
    """Returns what decodes prompts of `length` tokens beside fresh images' tokens."""
    model, variables = fresh()
    tokens = (model.image_size // model.patch_size) ** 2 + model.latents
    encoded = np.random.default_rng(0).normal(size=(count, tokens, model.width)).astype(np.float32)
    arrays = {name: value for name, value in settings.items() if isinstance(value, np.ndarray)}
    static = {name: value for name, value in settings.items() if name not in arrays}
    prompt = texts(count, length)

    @jax.jit
    def run(variables: Any, encoded: Any, prompt: Any, arrays: Any) -> Any:
        prefill, extend = (functools.partial(model.apply, variables, method=name) for name in ("prefill", "extend"))
        return function(prefill, extend, encoded, Batch(prompt), **arrays, **static)[0]

    return Work(run, (variables, jnp.asarray(encoded), prompt, arrays), TURNS)


def decoding() -> Work:
    lengths = dict(max_new=LENGTH - PREFIX, min_new=SHORTEST - PREFIX, prompt_length=PREFIX)
    return without_encoder(beam_search, BATCH, PREFIX, num_beams=BEAMS, eos=-1, pad=PAD, **lengths)


def ranking(row: str, k: int) -> Work:
    answers = answer_list()
    return without_encoder(rank, ROWS[row].count, QUESTION, answers=answers, answer_mask=answers != PAD, k=k)


def training() -> Callable[[], Any]:
    """The step of transfers/coco_caption.py, in float32; remat=dots, as there, is also the faster on a CPU."""
    cfg = config.load(f"transfers/coco_caption.py:size={VARIANT},res={SIZE}", ["model.dtype=float32"])
    step = training_step(cfg, TRAINED)
    batch = photos(TRAINED) | texts(TRAINED, LENGTH)
    said = np.arange(LENGTH) >= PREFIX
    return steps_of(step, batch | {"mask_loss": np.broadcast_to(np.float32(said), (TRAINED, LENGTH))})


OURS: dict[str, Callable[[], Callable[[], Any]]] = {
    "encoder": encoding,
    "caption": captions,
    "decode": decoding,
    "vqa_rank16": lambda: ranking("vqa_rank16", 16),
    "vqa_rank128": lambda: ranking("vqa_rank128", 128),
    "training": training,
}

if __name__ == "__main__":
    runtime.use_compilation_cache()
    serve(OURS[sys.argv[1]])
