"""Where on the photo a model looks while it writes: its attention to the photo's patches, for each token of a text.

What is asked of a model: `photo_attention(kept) -> (weights [b t n], side)`, of what its modules sow while they read
image and text: how each column of the text looks at all that it sees, as the mean over layers and heads. First come the
photo's patches, row by row, a square of this side; then what else there is, such as the text, or the experts' tokens. A
family whose text does not look at the photo's patches has no such method, or it returns None.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.batch import TEXT, Batch, inputs
from prismer_jax.typing import Array, Float, Int, typed


@typed
def photo_attention(
    model: Any, variables: Mapping[str, Any], batch: Mapping[str, Any], tokens: Int[np.ndarray, "b s"]
) -> Float[Array, "b s rows columns"] | None:
    """Returns how the model looked at the photo when it chose each of the tokens that follow a batch's prompts.

    The texts are read once more, as in training. What chose a token is the column before it. Its weights add up to at
    most 1: the rest is for what is not the photo's.

    Args:
      batch: a photo and a prompt a row, as `decode.generate` takes them.
      tokens: what was generated, with anything behind its end.
    """
    return _compiled(variables, inputs(batch), tokens, model) if hasattr(model, "photo_attention") else None


@functools.partial(jax.jit, static_argnums=3)
def _compiled(variables: Any, batch: Mapping[str, Array], tokens: Array, model: Any) -> Array | None:
    ones = jnp.ones(tokens.shape, jnp.int32)
    news = {"text": tokens, "mask_input": ones > 0, "mask_ar": ones, "segment": 0 * ones}
    read = {key: jnp.concatenate([batch[key], news[key]], axis=1) for key in TEXT}
    _, collections = model.apply(variables, Batch({**batch, **read}), mutable=["intermediates"])
    attention = model.photo_attention(collections["intermediates"])
    if attention is None:
        return None
    (weights, side), start = attention, batch["text"].shape[1] - 1
    weights = weights[:, start : start + tokens.shape[1], : side**2].astype(jnp.float32)
    return weights.reshape(*weights.shape[:2], side, side)


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Returns the words that generated ids spell, each with the places of its ids."""
    words = tokenizer.decode(ids).split()
    places: list[list[int]] = [[] for _ in words]
    for place, token in enumerate(ids if words else ()):
        if token == tokenizer.eos:
            break
        begun = len(tokenizer.decode(ids[: place + 1]).split())
        places[min(max(begun, 1), len(words)) - 1].append(place)
    return list(zip(words, places, strict=True))
