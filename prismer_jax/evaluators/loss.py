"""The training objective on other data, with the images and without."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from prismer_jax import batch as inputs
from prismer_jax import config, losses, registry, sharding
from prismer_jax.errors import UserError
from prismer_jax.evaluators.common import Batch, Evaluator, Record, blank, local_rows


class LossEvaluator(Evaluator):
    """A loss of `losses.LOSSES`, averaged as in training: yields `loss`, and `loss_blank` with blank images.

    Args:
      loss: its name.
      loss_options: its settings, such as {"label_smoothing": 0.1}.
      common: of `common.Evaluator`.
    """

    main_score, higher_is_better = "loss", False
    score_names = ("loss",)
    averaged: tuple[str, ...] = ("loss", "loss_blank")  # of a record, as far as it has them, by its weight

    def __init__(
        self, *, loss: str = "cross_entropy", loss_options: dict[str, Any] | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        function = registry.imported("loss", loss, losses.LOSSES)
        called_with = list(inspect.signature(function).parameters)[:2]
        options = config.arguments(function, loss_options or {}, f"loss_options of {loss!r}", extra=called_with)
        if not 0 <= (smoothing := options.get("label_smoothing", 0)) < 1:  # the loss says so when it is traced
            raise UserError(f"loss_options: label_smoothing={smoothing}: must be at least 0 and less than 1.")
        if options.get("normalize") == "part":  # of which an evaluation has one; a batch may be filled up
            options["normalize"] = "batch"

        def costs(variables: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            forward = functools.partial(losses.apply, self.model, variables)
            return function(forward, inputs.Batch(batch), **options)["loss"]

        self._costs = jax.jit(costs, out_shardings=None if self.mesh is None else sharding.batch_sharding(self.mesh))

    def check_source(self) -> None:
        if hasattr(self.model, "prefill"):  # a student reads no text
            self.check_ops("mask_loss", "makes no text to be predicted: end it with caption or question, and tokenize")

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        views, rows = {"loss": batch}, {}
        if self.with_blank:  # labels that the model does not read are what it is to say
            seen = {key: value for key, value in batch.items() if key == "image" or self.model.experts}
            views["loss_blank"] = {**batch, **blank(seen)}
        for name, view in views.items():
            rows[name], rows["weight"] = self.row_losses(variables, view)
        return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]

    def row_losses(self, variables: Any, batch: Batch) -> tuple[list[float], list[float]]:
        """Returns each row's loss and its weight, which is 0 where no token is to be predicted."""
        costs, weights = map(local_rows, self._costs(variables, self.put(batch)))
        if "mask_loss" in batch:  # as of all losses but those of label maps
            weights = weights * (batch["mask_loss"][:, 1:] != 0).any(1)
        return (costs / np.where(weights > 0, weights, 1)).tolist(), weights.tolist()

    def can_score(self, record: Record) -> bool:
        return record["weight"] > 0

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        for record in records:
            record["scores"] = {name: record[name] for name in self.averaged if name in record}
        for name in records[0]["scores"]:
            total = math.fsum(record["scores"][name] * record["weight"] for record in records)
            yield name, total / math.fsum(record["weight"] for record in records)
