"""Objectives that a config names: logits and a batch's text in, one number an example out."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prismer_jax.typing import Array, Float, Int, typed


@typed
def cross_entropy(
    logits: Float[Array, "b t v"],
    text: Int[Array, "b t"],
    mask_loss: Float[Array, "b t"],
    label_smoothing: float = 0.1,
    per_token: bool = False,
) -> Float[Array, " b"]:
    """Label-smoothed cross-entropy of each next token, weighted by `mask_loss` of the token that is predicted.

    A token costs (1-ε)·nll + ε·mean over the vocabulary of -log p. It is summed over the tokens of an example, as in
    the reference (NVlabs/prismer, model/modules/roberta.py), so that long texts weigh more.

    Args:
      mask_loss: weights; those of the first column are never used.
      per_token: divide by the sum of the weights instead: the mean over an example's tokens.
    """
    logits, labels = logits[:, :-1].astype(jnp.float32), text[:, 1:]
    weights = mask_loss[:, 1:]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    costs = normalizer - (1 - label_smoothing) * chosen - label_smoothing * logits.mean(-1)
    total = jnp.where(weights != 0, weights * costs, 0.0).sum(-1)
    return total / jnp.maximum(weights.sum(-1), 1e-9) if per_token else total


LOSSES: dict[str, Callable[..., Float[Array, " b"]]] = {"cross_entropy": cross_entropy}
