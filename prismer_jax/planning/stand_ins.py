"""A training step and the shapes of its batch, without the data: the config's own ops, on a made-up photo and text.

Shapes alone decide what a step costs, and a laptop seldom holds twelve million photos, nor a tokenizer's files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prismer_jax import config, labels, pp, sharding
from prismer_jax.batch import inputs
from prismer_jax.datasets import miniature
from prismer_jax.datasets.packing import Layout, join
from prismer_jax.errors import BadSample, UserError
from prismer_jax.training import features
from prismer_jax.training.step import Step, make_step

EXAMPLES = 10**9  # of a made-up data set: a schedule's length costs nothing
PHOTO = (480, 640, 3)  # COCO's usual; nothing but the number of its tiles could depend on it
QUESTION, ANSWER = "?", "a"  # short: of the tokenizer that stands in, each byte is a token

logger = logging.getLogger(__name__)


def step(cfg: config.Section, mesh: jax.sharding.Mesh) -> tuple[Step, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the training step of a config on a mesh, and the shapes of its batch; raises as `batch`."""
    words = tokenizer(cfg.tokenizer)
    durations: dict[str, int] = dict(batch_size=cfg.batch_size, num_examples=EXAMPLES)
    durations["total_steps"] = config.steps(cfg, "total", **durations)
    training, place = make_step(cfg, words, mesh, durations), sharding.batch_sharding(mesh)
    shapes = batch(cfg, words, training.model)
    return training, {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for key, x in shapes.items()}


def tokenizer(spec: str) -> Any:
    """Returns the tokenizer of a spec, or a small one that writes any text where its files are not here."""
    try:
        return pp.tokenizer.load(spec)
    except UserError as error:
        logger.warning("%s The plan takes another tokenizer; a step costs the same.", error)
        return pp.tokenizer.load(f"tokenizers:{miniature.talks()[1]}")


def example(experts: tuple[str, ...]) -> dict[str, Any]:
    """Returns an example with whatever an op may read: a grey photo, texts of each kind, empty label maps."""
    maps: dict[str, Any] = {labels.EXPERTS[name].key: b"" for name in experts}
    tables = [labels.EXPERTS[name].table for name in experts if labels.EXPERTS[name].table]
    maps |= {key: labels.EMPTY_TABLES[key] for key in tables}
    asked = {"question": QUESTION, "answers": [ANSWER], "weights": [1.0]}
    return {
        "id": "made up",
        "image": np.full(PHOTO, 128, np.uint8),
        "captions": [ANSWER],
        "questions": [asked],
        **asked,
        "turns": [{"user": QUESTION, "assistant": ANSWER}],
        **maps,
    }


def batch(cfg: config.Section, tokenizer: Any, model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes [batch_size, ...] of the arrays of a training batch of a config.

    Raises:
      UserError: the ops of a data section cannot be built, or need what the made-up example lacks.
    """
    name, part = next(iter(cfg.data.items()))
    sample = example(model.experts)
    if "features" in part:
        sample = features.stand_in(model, part["features"], sample)
    row = _row(f"config.data.{name}", part, tokenizer, sample)
    arrays = {key: np.asarray(value) for key, value in inputs(row).items()}
    arrays.setdefault("_mask", np.ones((), bool))
    return {key: jax.ShapeDtypeStruct((cfg.batch_size, *x.shape), x.dtype) for key, x in arrays.items()}


def _row(where: str, part: Mapping[str, Any], tokenizer: Any, sample: dict[str, Any]) -> dict[str, Any]:
    chain = pp.build(part["pp"], tokenizer=tokenizer)
    try:
        row = chain(sample, np.random.default_rng(0))
    except (BadSample, KeyError, TypeError) as error:
        raise UserError(f"{where}.pp cannot be planned without its data: {type(error).__name__}: {error}") from None
    if "pack" not in part:
        return row
    options = config.plain(part["pack"])
    layout = Layout(options["length"], options["most"], int(options.get("how") == "reference"))
    return join([row], layout, tokenizer.pad)
