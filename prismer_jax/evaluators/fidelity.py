"""How faithful a student's labels are to those it learns from, or would: a table by kind of label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from prismer_jax import labels, sharding
from prismer_jax.datasets import checks
from prismer_jax.evaluators.common import Batch, Evaluator, Record, local_rows
from prismer_jax.experts import student
from prismer_jax.scores import fidelity


class FidelityEvaluator(Evaluator):
    """The measures of `scores.fidelity` of each kind of label, such as `depth/abs_rel` and `obj_detection/pq`.

    The student's maps are compared in the size that the ops give the exact ones. Photos whose exact map is empty do not
    count for that kind, as they do not teach it.

    Args:
      options: of `Evaluator`. The ops keep the label maps (`labels_for`) and make an image.
    """

    text_key = "label"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kinds = self.model.kinds
        self.score_names = tuple(f"{kind}/{name}" for kind in self.kinds for name in fidelity.MEASURES[kind])
        place = None if self.mesh is None else sharding.batch_sharding(self.mesh)

        def read(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return self.model.apply(variables, batch, method="read")

        self._read = jax.jit(read, out_shardings=place)

    def check_source(self) -> None:
        checks.check_taught([{"source": self.source}], self.kinds, self.where)

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        said = self.put({"image": batch["image"]})
        read = {kind: local_rows(values) for kind, values in self._read(variables, said).items()}
        records = []
        for row in range(len(batch["image"])):
            exact = {kind: batch[labels.EXPERTS[kind].key][row] for kind in self.kinds}
            size = exact[self.kinds[0]].shape[:2]
            predicted = student.labels_of({kind: values[row] for kind, values in read.items()}, size)
            counts = {}
            for kind in self.kinds:
                if (exact[kind] == labels.EXPERTS[kind].fill).all():
                    continue
                key = labels.EXPERTS[kind].table
                own = predicted[kind].features if predicted[kind].classes is None else predicted[kind].classes
                tables = (own, batch[key][row]) if key else ()
                counts[kind] = fidelity.compare(kind, predicted[kind].map, exact[kind], *tables)
            records.append({"counts": counts})
        return records

    def can_score(self, record: Record) -> bool:
        return bool(record["counts"])

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        for kind in self.kinds:
            counts = [record["counts"][kind] for record in records if kind in record["counts"]]
            yield from ((f"{kind}/{name}", value) for name, value in fidelity.measures(kind, counts))
        for record in records:
            each = {kind: dict(fidelity.measures(kind, [counts])) for kind, counts in record["counts"].items()}
            record["scores"] = {f"{kind}/{name}": value for kind, one in each.items() for name, value in one.items()}
