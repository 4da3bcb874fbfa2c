"""Objectives that a config names, by a row of LOSSES; families of models have some of their own.

A loss is a function (forward, batch, **settings) -> {"loss": (costs [B], weights [B]), ...}. `forward(batch)` gives the
model's logits, and `forward(..., method="encode")` calls another of its methods; a loss may do so as often as it likes.
Of each named quantity training reports the sum of the costs over the sum of the weights, and it minimises that of
"loss": also over the parts of a batch that is accumulated, and over all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from prismer_jax.errors import UserError, choose
from prismer_jax.typing import Array, Float, Int, typed

Costs = dict[str, tuple[Float[Array, " b"], Float[Array, " b"]]]
Forward = Callable[..., Any]
Loss = Callable[[Forward, Mapping[str, Array]], Costs]


def cross_entropy(
    forward: Forward,
    batch: Mapping[str, Array],
    label_smoothing: float = 0.1,
    normalize: Literal["none", "example", "batch", "part"] = "none",
    chunk: int = 0,
) -> Costs:
    """Label-smoothed cross-entropy of each next token, weighted by `mask_loss` of the token that is predicted.

    Args:
      normalize: 'none' sums over the tokens of an example, so that long texts weigh more, and averages over examples,
        as the reference does (NVlabs/prismer, model/modules/roberta.py); 'example' averages over an example's tokens
        first, as big_vision does, and their weight remains; 'batch' averages over all tokens of the batch; 'part' over
        those of each part that is accumulated, and then over the parts, as huggingface/nanoVLM does (train.py).
      chunk: columns whose logits are in memory at once, 0 for all; of models with `text_costs` (decoder_only.py).
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing}: must be at least 0 and less than 1.")
    choose("normalize of cross_entropy", normalize, ("none", "example", "batch", "part"))
    if chunk:
        costs = forward(batch, method="text_costs", label_smoothing=label_smoothing, chunk=chunk)
    else:
        costs = token_costs(forward(batch), batch["text"], batch["mask_loss"], label_smoothing)
    weights, ones = batch["mask_loss"][:, 1:], jnp.ones(len(costs))
    shares = {"example": (weights != 0).sum(-1), "part": weights.sum() / len(costs)}
    if normalize in shares:
        costs = costs / jnp.maximum(shares[normalize], 1e-9)
    return {"loss": (costs, weights.sum(-1) if normalize == "batch" else ones)}


@typed
def token_costs(
    logits: Float[Array, "b t v"], text: Int[Array, "b t"], mask_loss: Float[Array, "b t"], label_smoothing: float = 0.1
) -> Float[Array, " b"]:
    """Returns the sum over an example's tokens but the first of weight · ((1-ε)·nll + ε·mean over words of -log p)."""
    return label_costs(logits[:, :-1], text[:, 1:], mask_loss[:, 1:], label_smoothing)


def label_costs(logits: Array, labels: Array, weights: Array, label_smoothing: float) -> Float[Array, " b"]:
    """Returns `token_costs` of logits [b t v] of the labels [b t] themselves, which weights [b t] multiply."""
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    costs = normalizer - (1 - label_smoothing) * chosen - label_smoothing * logits.mean(-1)
    return jnp.where(weights != 0, weights * costs, 0.0).sum(-1)


def apply(model: Any, variables: Any, *args: Any, method: str = "__call__", **settings: Any) -> Any:
    """Returns what the method that a loss calls makes of the arguments; a UserError says which this model lacks."""
    if not hasattr(model, method):
        raise UserError(f"config.loss needs {method!r}, which {type(model).__name__} lacks: change its name or chunk.")
    return model.apply(variables, *args, method=method, **settings)


LOSSES = {
    "cross_entropy": "prismer_jax.losses:cross_entropy",
    "label_maps": "prismer_jax.models.student:label_maps",
    "blip2_stage1": "prismer_jax.models.blip2.losses:stage1",
    "blip2_stage2": "prismer_jax.models.blip2.losses:stage2",
}
