"""The losses of both stages: see prismer_jax.losses, which names them, for what a loss is."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from prismer_jax.errors import choose
from prismer_jax.losses import Costs, Forward, token_costs
from prismer_jax.typing import Array, Bool, Float, typed


def stage1(
    forward: Forward,
    batch: Mapping[str, Array],
    label_smoothing: float = 0.1,
    gather: str = "through",
    clamp: bool = False,
) -> Costs:
    """The sum of three losses: contrast of images and texts (itc), matching (itm), text from an image (itg).

    Source: salesforce/LAVIS, models/blip2_models/blip2_qformer.py.

    Args:
      label_smoothing: of contrast and of text.
      gather, clamp: see models.blip2.stage1.Blip2Stage1.compared.

    Returns:
      'loss', 'itc', 'itm', 'itg', and how often it is right: 'itm_accuracy', 'i2t_r1' and 't2i_r1' within the batch.
    """
    choose("gather of stage1", gather, ("through", "reference"))
    out = forward(batch, gather=gather, clamp=clamp, method="compared")
    there = out["there"].astype(jnp.float32)
    itc = sum(contrast(out[way], out["same"], out["there"], label_smoothing) for way in ("i2t", "t2i")) / 2 * there
    yes = jnp.array([1, 0, 0])[:, None]  # a text and its image; another image; another text
    weights = jnp.stack([jnp.ones_like(out["counts"]), out["counts"], out["counts"]]) * there
    costs = jax.nn.logsumexp(out["match"], -1) - jnp.take_along_axis(out["match"], yes[..., None], -1)[..., 0]
    itm = (weights * costs).sum(0) * there.sum() / weights.sum()
    right = (weights * (out["match"].argmax(-1) == yes)).sum(0)
    real = batch["mask_input"] * there[:, None]
    itg = token_costs(out["logits"], batch["text"], real, label_smoothing)
    itg = itg * there.sum() / jnp.maximum(real[:, 1:].sum(), 1)
    costs = {"loss": itc + itm + itg, "itc": itc, "itm": itm, "itg": itg}
    recalls = {name: jnp.take_along_axis(out["same"], out[name[:3]].argmax(-1)[:, None], 1)[:, 0] for name in RECALLS}
    measured = {name: (x * there, there) for name, x in recalls.items()}
    return {k: (x, there) for k, x in costs.items()} | measured | {"itm_accuracy": (right, weights.sum(0))}


stage1.segments = False  # a photo is compared with one text: see datasets.packing.check

RECALLS = ("i2t_r1", "t2i_r1")


@typed
def contrast(
    similarities: Float[Array, "b n"], same: Bool[Array, "b n"], there: Bool[Array, " n"], smoothing: float
) -> Float[Array, " b"]:
    """Returns the cross-entropy of each row with targets (1-ε)·(the right ones alike) + ε·(all there alike)."""
    targets = (1 - smoothing) * same / jnp.maximum(same.sum(1, keepdims=True), 1) + smoothing * there / there.sum()
    return -(targets * jax.nn.log_softmax(similarities)).sum(1)


def stage2(forward: Forward, batch: Mapping[str, Array], start: bool = False) -> Costs:
    """Cross-entropy of the tokens with `mask_loss`, all alike.

    Args:
      start: the first token of a text counts, too, which the last query predicts, as in LAVIS with OPT and no prompt.
    """
    logits = forward(batch, method="predictions").astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, batch["text"][..., None], axis=-1)[..., 0]
    weights = batch["mask_loss"]
    if start:
        weights = weights.at[:, 0].set(batch["mask_input"][:, 0].astype(weights.dtype))
    costs = jnp.where(weights != 0, weights * (jax.nn.logsumexp(logits, axis=-1) - chosen), 0.0)
    return {"loss": (costs.sum(-1), weights.sum(-1))}
