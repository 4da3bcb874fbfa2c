"""The training objective on other data, with the images and without."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax

from prismer_jax import losses, sharding
from prismer_jax.errors import choose
from prismer_jax.evaluators.common import Batch, Evaluator, Record, blank, local_rows


class LossEvaluator(Evaluator):
    """Mean over examples of a loss of `losses.LOSSES`: yields `loss`, and `loss_blank` with blank images.

    Args:
      loss: its name.
      loss_options: its settings, such as {"label_smoothing": 0.1}.
      common: of `common.Evaluator`.
    """

    main_score, higher_is_better = "loss", False

    def __init__(
        self, *, loss: str = "cross_entropy", loss_options: dict[str, Any] | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        function, options = choose("loss", loss, losses.LOSSES), loss_options or {}

        def costs(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
            logits = self.model.apply(variables, batch, train=False)
            return function(logits, batch["text"], batch["mask_loss"], **options)

        self._costs = jax.jit(costs, out_shardings=None if self.mesh is None else sharding.batch_sharding(self.mesh))

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        views = {"loss": batch, "loss_blank": blank(batch)} if self.with_blank else {"loss": batch}
        costs = {name: local_rows(self._costs(variables, self.put(view))).tolist() for name, view in views.items()}
        return [dict(zip(costs, row, strict=True)) for row in zip(*costs.values(), strict=True)]

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        for record in records:
            record["scores"] = {name: record[name] for name in ("loss", "loss_blank") if name in record}
        for name in records[0]["scores"]:
            yield name, math.fsum(record["scores"][name] for record in records) / len(records)
