"""The training objective on other data, with the images and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax import losses
from prismer_jax.errors import choose
from prismer_jax.evaluators.common import Evaluator, blank


class LossEvaluator(Evaluator):
    """Mean over examples of a loss of `losses.LOSSES`: yields `loss`, and `loss_blank` with blank images.

    Args:
      loss: its name.
      loss_options: its settings, such as {"label_smoothing": 0.1}.
      common: of `common.Evaluator`.
    """

    def __init__(
        self, *, loss: str = "cross_entropy", loss_options: dict[str, Any] | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        function, options = choose("loss", loss, losses.LOSSES), loss_options or {}

        def total(variables: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            logits = self.model.apply(variables, batch, train=False)
            costs = function(logits, batch["text"], batch["mask_loss"], **options)
            return jnp.where(batch["_mask"], costs, 0.0).sum(), batch["_mask"].sum()

        self._total = jax.jit(total)

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        views = {"loss": dict, "loss_blank": blank} if self.with_blank else {"loss": dict}
        totals, count = dict.fromkeys(views, 0.0), 0
        for batch in self.batches():
            for name, view in views.items():
                total, valid = jax.device_get(self._total(variables, self.put(view(batch))))
                totals[name] += float(total)
            count += int(valid)
        for name, total in totals.items():
            yield name, total / count
