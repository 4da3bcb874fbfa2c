"""Whether texts are likelier with their own photo than with another: does a model look at what it describes?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.evaluators.common import Batch, Record, local_rows
from prismer_jax.evaluators.loss import LossEvaluator

RESAMPLES, LEVEL, SEED = 10_000, 95, 0  # of the bootstrap


class OwnPhotoEvaluator(LossEvaluator):
    """The cross-entropy of texts with their photo beside that with another example's, in nats a token.

    Yields `loss` and `loss_blank` as LossEvaluator, and `loss_other` with the photo of the row before in the batch. Of
    the difference loss_other - loss: its mean over examples `gain`, the ends `gain_low` and `gain_high` of its 95 %
    interval by a paired bootstrap (Efron and Tibshirani 1993), and `wins`, the percentage of examples where it is
    positive. An example is a photo, with all of its texts in a row (`pack`) or with one.

    Args:
      common: of `common.Evaluator`. The batch has at least two rows.
    """

    main_score, higher_is_better = "gain", True
    score_names = ("loss", "gain", "wins")

    def __init__(self, **common: Any) -> None:
        # Likelihoods are compared, whatever is trained: neither smoothed nor summed over a text.
        super().__init__(loss_options=dict(label_smoothing=0.0, normalize="batch"), **common)

    def check_source(self, where: str = "evaluation") -> None:
        super().check_source(where)
        if min(self.batch_size, len(self.source)) < 2:
            raise UserError(f"{where}: another photo takes two examples, in a batch of two at least.")

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        rows = super().measure(variables, batch)
        costs, weights = map(local_rows, self._costs(variables, self.put(with_others(batch))))
        others = (costs / np.where(weights > 0, weights, 1)).tolist()
        return [{**row, "loss_other": other} for row, other in zip(rows, others, strict=True)]

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        yield from super().metrics(records)
        gains = np.array([record["loss_other"] - record["loss"] for record in records])
        for record, gain in zip(records, gains, strict=True):
            record["scores"] |= {"loss_other": record["loss_other"], "gain": float(gain)}
        yield "loss_other", float(np.mean([record["loss_other"] for record in records]))
        low, high = interval(gains)
        yield from (("gain", gains.mean()), ("gain_low", low), ("gain_high", high), ("wins", 100 * (gains > 0).mean()))


def with_others(batch: Batch) -> Batch:
    """Returns the host batch with the photo and labels of the row before in each row, of the last in the first."""
    real = np.flatnonzero(batch["_mask"])
    order = np.arange(len(batch["_mask"]))
    # A single row in a last batch takes a photo that fills it up, which is another example's.
    order[real] = np.roll(real, 1) if len(real) > 1 else (real + 1) % len(order)
    shown = [key for key in batch if key in ("image", "image_mask") or key.startswith("labels/")]
    return {**batch, **{key: batch[key][order] for key in shown}}


def interval(values: Any, seed: int = SEED) -> tuple[float, float]:
    """Returns the ends between which the mean of the population of `values` [n] lies with LEVEL percent confidence."""
    values = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(1), [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
