"""How surprised a model is by the right texts: its loss a token, and the exponential of that."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from prismer_jax.evaluators.common import Batch, Record
from prismer_jax.evaluators.loss import LossEvaluator


class PerplexityEvaluator(LossEvaluator):
    """Yields `loss`, the mean over examples of the mean over an example's tokens, in nats, and exp(loss), `perplexity`.

    The loss is what google-research/big_vision's evaluators/proj/paligemma/perplexity.py calls `avg`. Each of both
    also with blank images, as `loss_blank` and `perplexity_blank`.

    Args:
      common: of `common.Evaluator`.
    """

    score_names = ("loss", "perplexity")

    def __init__(self, **common: Any) -> None:
        super().__init__(loss_options=dict(label_smoothing=0.0, normalize="batch"), **common)

    def row_losses(self, variables: Any, batch: Batch) -> tuple[list[float], list[float]]:
        """Returns each row's loss a token, and the same weight for all rows that have such tokens."""
        losses, weights = super().row_losses(variables, batch)
        return losses, [float(weight > 0) for weight in weights]

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        for name, value in super().metrics(records):
            yield name, value
            yield name.replace("loss", "perplexity"), _exp(value)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # of a model that is far off, which ends no training
        return math.inf
