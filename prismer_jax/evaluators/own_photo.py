"""Whether texts are likelier with their own photo than with another: does a model look at what it describes?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismer_jax import input as loader
from prismer_jax.datasets.packing import Measured
from prismer_jax.errors import BadSample, UserError
from prismer_jax.evaluators.common import Batch, Record
from prismer_jax.evaluators.loss import LossEvaluator
from prismer_jax.scores import bootstrap

RESAMPLES = 10_000  # of the bootstrap


class OwnPhotoEvaluator(LossEvaluator):
    """The cross-entropy of texts with their photo beside that with another example's, in nats a token.

    Yields `loss` and `loss_blank` as LossEvaluator, and `loss_other`, likewise, with the photo that `OtherPhotos`
    chooses. Of an example's difference loss_other - loss: its mean over examples `gain`, the ends `gain_low` and
    `gain_high` of its 95 % interval by a paired bootstrap over photos (`scores.bootstrap`), and `wins`, the percentage
    of examples where it is positive. An example is a photo, with all of its texts in a row (`pack`) or with one. Where
    texts have tokens for a photo's tiles, the other photo is of the same rows and columns; an example for which there
    is none is left out.

    Args:
      common: of `common.Evaluator`. Each photo is read twice.
    """

    main_score, higher_is_better = "gain", True
    score_names = ("loss", "loss_other", "gain", "gain_low", "gain_high", "wins")
    averaged = (*LossEvaluator.averaged, "loss_other")

    def __init__(self, **common: Any) -> None:
        # Likelihoods are compared, whatever is trained: neither smoothed nor summed over a text.
        super().__init__(loss_options=dict(label_smoothing=0.0, normalize="batch"), **common)

    def check_source(self) -> None:
        if len(self.source) < 2:
            raise UserError(f"{self.where}: another photo takes two examples.")
        super().check_source()

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        rows = super().measure(variables, batch)
        shown = [key for key in batch if key in ("image", "image_mask") or key.startswith("labels/")]
        view = {**batch, **{key: batch["other"][key] for key in shown}}
        others, _ = self.row_losses(variables, view)
        return [{**row, "loss_other": other} for row, other in zip(rows, others, strict=True)]

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        yield from super().metrics(records)
        gains = np.array([record["loss_other"] - record["loss"] for record in records])
        for record, gain in zip(records, gains, strict=True):
            record["scores"]["gain"] = float(gain)
        photos, each = [record["photo"] for record in records], np.ones((len(records), 1))
        _, ends = bootstrap.intervals(gains[:, None, None], each, photos, RESAMPLES)
        yield from (("gain", gains.mean()), *zip(("gain_low", "gain_high"), map(float, ends.ravel()), strict=True))
        yield "wins", 100 * (gains > 0).mean()

    def _load(self, numbers: Sequence[int], num_workers: int | None = None) -> Iterator[Batch]:
        """This process's part of the host batches of these numbers, each with a batch of other photos as `other`."""
        others = loader.eval_batches(
            range(len(self.source)),
            OtherPhotos(self.source, self.pp, getattr(self.model, "image_token", None) is not None),
            batch_size=self.batch_size,
            rows=self._rows,
            num_workers=self.num_workers if num_workers is None else num_workers,
            numbers=numbers,
        )
        for batch, other in zip(super()._load(numbers, num_workers), others, strict=True):
            pairs = zip(batch["meta"], other["meta"], strict=True)
            meta = [theirs if "error" in theirs and "error" not in own else own for own, theirs in pairs]
            yield {**batch, "_mask": batch["_mask"] & other["_mask"], "meta": meta, "other": other}


@dataclass
class OtherPhotos:
    """An op: the index of an example -> the arrays of the nearest good one before it that shows another photo.

    Before the first example stands the last. Processes, workers and batches have no part in the choice.

    Attributes:
      same_grids: only photos of the same rows and columns of tiles, whose tokens in a text then fit.
    """

    source: Any
    pp: Any
    same_grids: bool = False

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        own, grids, others = photo_of(self.source[index], index), self._grids(index), 0
        for other in (*range(index - 1, -1, -1), *range(len(self.source) - 1, index, -1)):
            with contextlib.suppress(BadSample):
                if photo_of(self.source[other], other) != own:
                    if self._grids(other) == grids:
                        return loader.eval_example(self.source, self.pp, other)
                    others += 1
        if others:
            raise BadSample(f"example {index}: no other photo is of the tiles {grids}.", "no other photo of such tiles")
        raise UserError(f"own_photo: no good example shows another photo than example {index}. Add one to the data.")

    def _grids(self, index: int) -> Any:
        """Returns the rows and columns of an example's tiles, by its photos' headers, where they matter."""
        if not self.same_grids:
            return None
        return Measured(self.pp).planned(self.source[index], np.random.default_rng([0, index])).get("grids")


def photo_of(example: Mapping[str, Any], index: int) -> Any:
    """Returns by what an example's photo is told from others: its path or its bytes, or else its id."""
    image = example.get("image")
    return image if isinstance(image, str | bytes) else example.get("photo", example.get("id", index))
