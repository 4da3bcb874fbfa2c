"""What evaluators share: batches on the devices, the blank image, the walk over a data set, and samples to look at.

An evaluator is made once and run on any variables; `run(variables)` yields (name, value). All sums are exact: padding
rows of the last batch count nowhere, and with several processes each sample counts once. A run leaves `records`, one an
example, with all that was said of it and its scores.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from prismer_jax import input as loader
from prismer_jax import labels, sharding
from prismer_jax.batch import inputs
from prismer_jax.config import check_workers
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import progress
from prismer_jax.pp.labels import maps
from prismer_jax.report import selection

Batch = Mapping[str, Any]
Record = dict[str, Any]
GREY = 128  # the blank image

logger = logging.getLogger(__name__)


class Journal(Protocol):
    """What keeps entries as they come, so that a run that is killed goes on; `evaluators.journal` has one."""

    def read(self) -> list[Record]: ...

    def write(self, entries: list[Record]) -> None: ...


class Evaluator:
    """Base of all evaluators: holds what they are made of and walks over the data.

    Args:
      model: a linen module as in `prismer_jax.models`.
      tokenizer: of `prismer_jax.pp.tokenizer`.
      source: examples to evaluate.
      pp: chain of ops that makes a batch's arrays of them.
      batch_size: of all processes together.
      mesh: of `sharding.make_mesh`; None for one device.
      train_source: where the most frequent text is taken from; None: from the references themselves.
      num_workers: of the loader.
      blank: also evaluate the model on blank images.
      max_unscored: the fraction of samples that may be bad (one may in any case), or without reference. Metrics are of
        the others, and say how many these are: `left_out`, `unscored`.
      predict_only: score nothing: of a test set without references, a server takes the predictions.
      quiet: show no progress.
      where: the section of the config that messages name; the class by default.

    Attributes:
      records: of the last run, one an example in the source's order: `index` in the source, `id` in results,
        `photo`, `type` (of the question), `question`, what the evaluator found, and `scores` where there are any:
        {metric: the example's part in it}, of which the metric is the mean.
      predictions: of the last run, in the official result format.
      left_out: of the last run, {"index", "error", "reason"} of each bad sample: a damaged photo or label.
      main_score: the name among `scores` by which samples are better or worse; `higher_is_better` says which way,
        `is_accuracy` whether it is 100 for a right answer and 0 for a wrong one.
    """

    main_score = ""
    score_names: tuple[str, ...] = ()  # that `metrics` yields, each with its rivals and kinds; () where nobody knows
    higher_is_better = True
    is_accuracy = False
    text_key = "text"  # what samples are scored by

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        source: Any,
        pp: Any,
        batch_size: int,
        mesh: Any = None,
        train_source: Any = None,
        num_workers: int = 0,
        blank: bool = True,
        max_unscored: float = 0.01,
        predict_only: bool = False,
        quiet: bool = False,
        where: str = "",
    ) -> None:
        self.model, self.tokenizer, self.mesh = model, tokenizer, mesh
        self.source, self.pp, self.batch_size = source, pp, batch_size
        self.train_source, self.num_workers = train_source, num_workers
        self.with_blank, self.max_unscored, self.predict_only, self.quiet = blank, max_unscored, predict_only, quiet
        self.where = where or type(self).__name__
        self.predictions: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.left_out: list[Record] = []
        self._template: dict[str, Any] = {}  # arrays of this process's part of a batch, without an image
        check_workers(num_workers)
        if mesh is not None:
            sharding.check_batch(batch_size, mesh)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if mesh is None else sharding.batch_sharding(mesh)
        self._place, self._rows = loader.placer(place), sharding.rows_of(place, batch_size)

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        """Returns a record for each row of a host batch: what JSON can write of the model's answer."""
        raise NotImplementedError

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of the records that can be scored, and notes each one's `scores`."""
        raise NotImplementedError

    def can_score(self, record: Record) -> bool:
        """Returns whether a record has something to be scored by."""
        return bool(record["references"])

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        """Returns the fields of a record that describe its example."""
        return {
            "id": self.key_of(example, index),
            "photo": str(example.get("photo", example.get("id", index))),
            "type": str(example.get("question_type") or ""),
            "question": example.get("question"),
        }

    def key_of(self, example: Mapping[str, Any], index: int) -> int | str:
        """Returns the example's id in results: what its list had as a number, or is written as one, is a number."""
        if (key := example.get("question_id")) is not None:
            return key if isinstance(key, str) else int(key)
        key = str(example.get("id", index))  # a photo's, which data sets hold as a text
        return int(key) if re.fullmatch(r"0|[1-9][0-9]*", key) else key

    def finish(self, variables: Any, records: list[Record], earlier: list[Record], journal: Journal | None) -> None:
        """Adds to each record the fields that need all predictions, such as the answer to a blank image."""

    @property
    def decoding(self) -> dict[str, Any]:
        """Returns the settings that predictions are decoded with."""
        return {}

    def run(self, variables: Any, journal: Journal | None = None) -> Iterator[tuple[str, float]]:
        """Evaluates the model and yields (name, value).

        Predictions are kept in `journal` as they come, where earlier starts have left some.

        Raises:
          UserError: nothing can be scored, or more samples than `max_unscored` cannot.
        """
        self.check_source()
        self.records = self.walk(variables, journal)
        for entry in self.left_out if jax.process_index() == 0 else ():
            logger.warning("Left out: %s", entry["error"])
        count, more = len(self.source), f"Mend the data, or allow more: max_unscored (now {self.max_unscored})."
        if bad := len(self.left_out):
            if bad > max(1, self.max_unscored * count):
                raise UserError(f"{bad} of {count} samples are bad, the first: {self.left_out[0]['error']} {more}")
            yield "left_out", bad
        if self.predict_only:
            return
        bare = [record["id"] for record in self.records if not self.can_score(record)]
        if len(bare) > self.max_unscored * count or len(bare) == len(self.records):
            raise UserError(f"{len(bare)} of {count} samples have no {self.text_key}, such as {bare[0]!r}. {more}")
        yield from self.metrics([record for record in self.records if self.can_score(record)])
        if bare:
            logger.warning("%d of %d samples have no %s and no score.", len(bare), count, self.text_key)
            yield "unscored", len(bare)

    def check_source(self) -> None:
        """Raises a UserError if nothing in the source can be scored, before the model is asked."""

    def check_ops(self, key: str, problem: str) -> None:
        """Raises a UserError that says a problem of `pp` if it makes no array of that key of an example."""
        if key not in next(iter(loader.eval_batches(self.source, self.pp, batch_size=1, numbers=[0]))):
            raise UserError(f"{self.where}.pp {problem}.")

    def walk(self, variables: Any, journal: Journal | None = None) -> list[Record]:
        """Returns the records of all good examples of all processes, in the source's order; notes what is left out."""
        earlier = [] if journal is None else journal.read()
        entries = [entry for entry in earlier if "index" in entry and not self._is_mended(entry)]
        count, size = len(self.source), self.batch_size
        done_indices = set(gather([record["index"] for record in entries]))
        every = (range(start, min(count, start + size)) for start in range(0, count, size))
        numbers = [number for number, indices in enumerate(every) if not done_indices.issuperset(indices)]
        batches = self._load(numbers)
        with self._progress("", count, count - sum(min(size, count - n * size) for n in numbers)) as advance:
            for number, batch in zip(numbers, batches, strict=True):
                self._template = self._template or _without_image(batch)
                measured = self.measure(variables, batch)
                new = []
                for row, meta in enumerate(batch["meta"]):
                    index = number * size + self._rows[row]
                    if batch["_mask"][row]:
                        new.append({"index": index, **self.about(meta, index), **measured[row]})
                    elif "error" in meta:
                        new.append({"index": index, **meta})
                if journal is not None:
                    journal.write(new)
                entries += new
                advance(min(size, count - number * size))
        # A batch of which an earlier start lost a part was evaluated again: of two records of an example either serves.
        records = sorted({record["index"]: record for record in gather(entries)}.values(), key=lambda r: r["index"])
        assert [record["index"] for record in records] == list(range(count)), "an example is lost"
        self.left_out = [record for record in records if "error" in record]
        records = [record for record in records if "error" not in record]
        self.finish(variables, records, [entry for entry in earlier if "index" not in entry], journal)
        return records

    def _is_mended(self, entry: Record) -> bool:
        """Returns whether an example that an earlier start left out is good by now."""
        if "error" in entry:
            with contextlib.suppress(BadSample):
                return bool(loader.eval_example(self.source, self.pp, entry["index"]))
        return False

    def _load(self, numbers: Sequence[int], num_workers: int | None = None) -> loader.EvalBatches:
        """Returns this process's part of the host batches of these numbers."""
        workers = self.num_workers if num_workers is None else num_workers
        return loader.eval_batches(
            self.source, self.pp, batch_size=self.batch_size, rows=self._rows, num_workers=workers, numbers=numbers
        )

    def _progress(self, what: str, total: int, done: int, unit: str = "samples") -> Any:
        title = type(self).__name__.removesuffix("Evaluator").lower() + what
        enabled = not self.quiet and jax.process_index() == 0
        return progress.bar(title, total, unit=unit, done=done, enabled=enabled)

    def template(self) -> dict[str, Any]:
        """Returns a host batch of this process without images, for its shapes."""
        if not self._template:  # all batches are an earlier start's
            self._template = _without_image(next(iter(self._load([0], num_workers=0))))
        return self._template

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """Puts the model's inputs of a host batch on the devices."""
        return self._place(inputs(batch))

    def samples(self, n: int, which: Literal["random", "best", "worst"] = "random") -> list[dict[str, Any]]:
        """Returns at most n samples of the last run for `report`, loaded again from the source: always the same."""
        chosen = selection.chosen(self.records, n, which, self.main_score, self.higher_is_better)
        return [self.sample(record) for record in chosen]

    def sample(self, record: Record) -> dict[str, Any]:
        """Returns what a panel shows (see `report.draw`), with the photo and the labels as the model gets them."""
        example = loader.eval_example(self.source, self.pp, record["index"])
        image, label_maps = example["image"], maps(example)
        if image.ndim == 4:  # of tiles the first is the whole photo
            image, label_maps = image[0], {name: tiles[0] for name, tiles in label_maps.items()}
        score = record.get("scores", {}).get(self.main_score)
        return {
            "id": record["id"],
            "image": image,
            "labels": label_maps,
            "classes": dict(getattr(self.model, "classes", {})),
            "instances": example.get(labels.CLASSES_KEY),
            "words": list(example.get("words", ())),
            "question": record["question"],
            "question_type": record["type"],
            "prediction": record.get("prediction"),
            "blank": record.get("blank"),
            "references": record.get("references", []),
            "correct": score / 100 if self.is_accuracy and score is not None else None,
            "score": (self.main_score, score) if self.main_score else None,
        }


def blank(batch: Batch) -> dict[str, Any]:
    """Returns the host batch with mid-grey images and all labels background, which shows a model nothing."""
    fills = {expert.key: expert.fill for expert in labels.EXPERTS.values()} | labels.EMPTY_TABLES | {"image": GREY}
    return {key: np.full_like(value, fills[key]) if key in fills else value for key, value in batch.items()}


def _without_image(batch: Batch) -> dict[str, Any]:
    return blank({key: value for key, value in batch.items() if isinstance(value, np.ndarray)})


def local_rows(array: Any) -> np.ndarray:
    """Returns the rows of a batch array that this process put there, in their order."""
    if jax.process_count() == 1:
        return jax.device_get(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([jax.device_get(parts[start]) for start in sorted(parts)])


def gather(records: list[Any]) -> list[Any]:
    """Returns the records of all processes, in their order; each is anything that JSON can write."""
    if jax.process_count() == 1:
        return records
    sharding.barrier("gather")
    data = np.frombuffer(json.dumps(records).encode(), np.uint8)
    size = np.array([data.size]).view(np.uint8)  # integers of 64 bits would arrive as 32
    sizes = np.ascontiguousarray(multihost_utils.process_allgather(size)).view(np.int64)[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [record for row, size in zip(rows, sizes, strict=True) for record in json.loads(bytes(row[:size]))]
