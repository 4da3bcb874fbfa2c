"""Images and texts compared: by the likeness of their vectors, and by a model that reads both at once.

What is asked of a model: `image_tokens(batch)`, `queried(tokens) -> (states, keys)`, `image_embeddings(states)`,
`read_text(batch) -> (states, embeddings)` and `matched(text, real, keys=keys) -> (states, scores)`, as
models/blip2/stage1.py has them.

Source: salesforce/LAVIS, models/blip2_models/blip2_qformer.py and blip2.py (compute_sim_matrix).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.batch import prompts
from prismer_jax.errors import UserError
from prismer_jax.pp.text import style_of
from prismer_jax.typing import Array, Bool, Float, Int, typed

METHODS = ("image_tokens", "queried", "image_embeddings", "read_text", "matched")

logger = logging.getLogger(__name__)


def check(model: Any) -> None:
    """Raises a UserError if a model does not compare images with texts."""
    if not all(hasattr(model, name) for name in METHODS):
        raise UserError(
            f"A {type(model).__name__} does not compare photos with texts; a BLIP-2 of stage 1 does, of the variants "
            "pretrained and finetune_coco."
        )


def tokens(tokenizer: Any, texts: Sequence[str], length: int, style: str = "blip") -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids int32 [texts, length] of `bos`, text, `eos`, padded on the right, and which are no padding.

    Longer texts lose words at their end, which is said once.

    Raises:
      UserError: a text is empty.
    """
    clean, ids, cut = style_of(style), np.full((len(texts), length), tokenizer.pad, np.int32), 0
    real = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
        words = tokenizer.encode(clean.caption(text))
        if not words:
            raise UserError(f"Text {row + 1} of {len(texts)} is empty ({text!r}): leave it out.")
        cut += len(words) > length - 2
        words = [tokenizer.bos, *words[: length - 2], tokenizer.eos]
        ids[row, : len(words)], real[row, : len(words)] = words, True
    if cut:
        logger.warning("%d of %d texts are longer than %d tokens and were cut.", cut, len(texts), length)
    return ids, real


@functools.partial(jax.jit, static_argnums=0)
def read_images(model: Any, variables: Any, batch: Mapping[str, Array]) -> dict[str, Any]:
    """Returns 'embeddings' [b q e], unit vectors, and 'keys', what `match` reads of the images."""

    def read(model: Any, batch: Mapping[str, Array]) -> dict[str, Any]:
        states, keys = model.queried(model.image_tokens(batch))
        return {"embeddings": model.image_embeddings(states), "keys": keys}

    return model.apply(variables, batch, method=read)


@functools.partial(jax.jit, static_argnums=0)
def read_texts(model: Any, variables: Any, text: Int[Array, "b t"], real: Bool[Array, "b t"]) -> Float[Array, "b e"]:
    """Returns texts as unit vectors."""
    return model.apply(variables, prompts(text, real), method="read_text")[1][:, 0]


@functools.partial(jax.jit, static_argnums=0)
def match(
    model: Any, variables: Any, keys: Any, text: Int[Array, "b k t"], real: Bool[Array, "b k t"]
) -> tuple[Float[Array, "b k q d"], Float[Array, "b k 2"]]:
    """Returns the states of queries that see an image and one of its k texts, and the scores of 'no' and 'yes'.

    An image's keys and values are of `read_images`: they are made once, however many texts there are.
    """
    states, scores = model.apply(variables, text, real, keys=keys, method="matched")
    return states, scores.mean(2)


@jax.jit
@typed
def likeness(images: Float[Array, "n q e"], texts: Float[Array, "m e"]) -> Float[Array, "n m"]:
    """Returns the cosine of each text and the query of each image that is most like it."""
    return jnp.einsum("nqe,me->nqm", images, texts, precision=jax.lax.Precision.HIGHEST).max(1)
