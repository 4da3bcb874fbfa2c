"""What evaluators share: batches on the devices, the blank image, the walk over a data set, and samples to look at.

An evaluator is made once and run on any variables; `run(variables)` yields (name, value). All sums are exact: padding
rows of the last batch count nowhere, and with several processes each sample counts once.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from prismer_jax import decode, labels, sharding
from prismer_jax import input as loader
from prismer_jax.errors import UserError, choose

Batch = Mapping[str, Any]
GREY = 128  # the blank image
SCANNED = 5000  # examples of the training set that are looked at for the most frequent text
INPUTS = ("image", "text", "mask_ar", "mask_loss", "_mask")


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
      quiet: no progress bar.
    """

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
        quiet: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.mesh = model, tokenizer, mesh
        self.source, self.pp, self.batch_size = source, pp, batch_size
        self.train_source, self.num_workers = train_source, num_workers
        self.with_blank, self.quiet = blank, quiet
        self.predictions: list[dict[str, Any]] = []
        if mesh is not None:
            sharding.check_batch(batch_size, mesh)

    def batches(self) -> Iterator[dict[str, Any]]:
        """This process's host batches of the whole data set, once, with a progress bar."""
        batches = loader.eval_batches(
            self.source,
            self.pp,
            batch_size=self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self.num_workers,
        )
        return progress(batches, len(batches), type(self).__name__, quiet=self.quiet)

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """The model's inputs of a host batch, on the devices."""
        return {
            key: jax.device_put(value)
            if self.mesh is None
            else jax.make_array_from_process_local_data(sharding.batch_sharding(self.mesh), value)
            for key, value in batch.items()
            if key in INPUTS or key.startswith("labels/")
        }

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Evaluates; yields (name, value)."""
        raise NotImplementedError


def blank(batch: Batch) -> dict[str, Any]:
    """The same host batch with mid-grey images and all labels background: what a model says that does not look."""
    empty = {labels.CLASSES_KEY: labels.no_classes, labels.WORDS_KEY: labels.no_words}
    fills = {expert.key: expert.fill for expert in labels.EXPERTS.values()} | {"image": GREY}
    result = dict(batch)
    for key, value in batch.items():
        if key in empty:
            result[key] = np.broadcast_to(empty[key](), value.shape).astype(value.dtype)
        elif key in fills:
            result[key] = np.full_like(value, fills[key])
    return result


class TextEvaluator(Evaluator):
    """Base of evaluators of generated text: one prediction an example, and one a distinct prompt for blank images.

    Args:
      style: 'plain', or 'reference' to write texts as the official code does (`pp.text`).
      samples_kept: how many samples `samples` can choose from.
      options: those of `Evaluator`; what is left are settings of the decoding.

    Raises:
      UserError: an unknown style.
    """

    id_key, text_key = "image_id", "caption"  # of the official result format

    def __init__(
        self, *, style: Literal["plain", "reference"] = "plain", samples_kept: int = 48, **options: Any
    ) -> None:
        common = {key: options.pop(key) for key in inspect.signature(Evaluator).parameters if key in options}
        super().__init__(**common)
        choose("style", style, {"plain": None, "reference": None})
        self.style = style
        self.samples_kept, self.settings = samples_kept, options
        self._rng = jax.random.key(0)
        self._frequent: str | None = None
        self._kept: list[dict[str, Any]] = []

    def say(self, variables: Any, batch: dict[str, jax.Array]) -> list[str]:
        """What the model says to each row of this process."""
        raise NotImplementedError

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        """The reference texts of an example."""
        raise NotImplementedError

    def key_of(self, example: Mapping[str, Any]) -> int | str:
        """The example's id in results: a number where it is written as one."""
        key = str(example["id"])
        return int(key) if re.fullmatch(r"[0-9]+", key) else key

    def check_settings(self, *functions: Callable[..., Any]) -> None:
        """Raises a UserError for a setting that no parameter of these functions is called."""
        known = {name: None for function in functions for name in inspect.signature(function).parameters}
        for name in self.settings:
            choose(f"option of {type(self).__name__}:", name, known)

    def generate(
        self, variables: Any, batch: dict[str, jax.Array], method: str, write: Callable[..., str]
    ) -> list[str]:
        """The likeliest continuation of each row's prompt, as text: `write` is a function `..._said` of pp.text."""
        rng = {"rng": self._rng} if method == "sample" else {}
        tokens, _ = decode.generate(self.model, variables, batch, method=method, **rng, **self.settings)
        width = batch["text"].shape[1]
        return [write(self.tokenizer, row[0].tolist(), width, self.style) for row in local_rows(tokens)]

    def records(self, variables: Any) -> list[dict[str, Any]]:
        """Walks over the data; a record an example of all processes: key, said, blank, texts, kind, question."""
        records: list[dict[str, Any]] = []
        prompts: dict[bytes, np.ndarray] = {}
        self._kept, template = [], None
        for number, batch in enumerate(self.batches()):
            template = template or {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
            said = self.say(variables, self.put(batch))
            for row in np.flatnonzero(batch["_mask"]):
                example, prompt = batch["meta"][row], batch["text"][row]
                prompts.setdefault(prompt.tobytes(), prompt)
                record = {
                    "order": (number, int(row), jax.process_index()),  # that of the source
                    "key": self.key_of(example),
                    "said": said[row],
                    "prompt": prompt.tobytes(),
                    "texts": [str(text) for text in self.texts_of(example)],
                    "kind": str(example.get("question_type") or ""),
                    "question": example.get("question"),
                }
                records.append(record)
                self._keep(record, example, batch, row)
        grey = self._say_blank(variables, template, list(prompts.values())) if self.with_blank else {}
        for record in records:
            record["blank"] = grey.get(record.pop("prompt"))
        records = sorted(gather(records), key=lambda record: record["order"])
        check_unique([record["key"] for record in records])
        self.predictions = [{self.id_key: record["key"], self.text_key: record["said"]} for record in records]
        return records

    def _say_blank(self, variables: Any, template: Batch, prompts: list[np.ndarray]) -> dict[bytes, str]:
        """What the model says without an image, once a distinct prompt."""
        rows = len(template["text"])
        said: dict[bytes, str] = {}
        longest = int(max(gather([len(prompts)])))  # all processes take part in every batch
        for start in range(0, longest, rows):
            chunk = prompts[start : start + rows] or prompts[:1]
            text = np.stack([*chunk, *[chunk[0]] * (rows - len(chunk))])
            batch = blank(template) | {"text": text, "_mask": np.ones(rows, bool)}
            answers = self.say(variables, self.put(batch))
            said |= {prompt.tobytes(): answer for prompt, answer in zip(chunk, answers, strict=False)}
        return said

    def most_frequent(self, records: Sequence[Mapping[str, Any]]) -> str:
        """The most frequent text of the training source, or of the references."""
        if self._frequent is None:
            counts: Counter[str] = Counter()
            for example in scan(self.train_source):
                counts.update(self.texts_of(example))
            if not counts:
                counts.update(text for record in records for text in record["texts"])
            self._frequent = counts.most_common(1)[0][0]
        return self._frequent

    # ------------------------------------------------------------------------------------------------ samples

    def _keep(self, record: dict[str, Any], example: Mapping[str, Any], batch: Batch, row: int) -> None:
        """Keeps what a panel shows, of few samples: those with the lowest checksum of their id, of every kind."""
        if self.samples_kept == 0:
            return
        self._kept.append(
            {
                "record": record,
                "photo": example.get("id"),
                "rank": zlib.crc32(str(record["key"]).encode()),
                "image": batch["image"][row].copy(),
                "labels": {
                    name: batch[expert.key][row].copy()
                    for name, expert in labels.EXPERTS.items()
                    if expert.key in batch
                },
                "instances": batch[labels.CLASSES_KEY][row].copy() if labels.CLASSES_KEY in batch else None,
                "words": list(example.get("words", ())),
            }
        )
        if len(self._kept) > self.samples_kept:
            crowd = Counter(sample["record"]["kind"] for sample in self._kept)
            largest = max(crowd.values())
            full = [s for s in self._kept if crowd[s["record"]["kind"]] == largest]
            worst = max(full, key=lambda sample: sample["rank"])
            self._kept = [sample for sample in self._kept if sample is not worst]

    def correctness(self, record: Mapping[str, Any]) -> float | None:
        """Accuracy in [0, 1] of one prediction, None where that has no meaning."""
        return None

    def samples(self, n: int) -> list[dict[str, Any]]:
        """At most n samples of the last run for `report`: always the same ones, in turn of every question type."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for sample in sorted(self._kept, key=lambda sample: sample["rank"]):
            groups.setdefault(sample["record"]["kind"], []).append(sample)
        chosen, seen = [], set()
        while len(chosen) < n and any(groups.values()):
            for kind in sorted(kind for kind, members in groups.items() if members):
                # Of the same photo there may be many questions: others first.
                fresh = [sample for sample in groups[kind] if sample["photo"] not in seen]
                sample = (fresh or groups[kind])[0]
                groups[kind] = [other for other in groups[kind] if other is not sample]
                seen.add(sample["photo"])
                chosen.append(sample)
        return [
            {
                "id": sample["record"]["key"],
                "image": sample["image"],
                "labels": sample["labels"],
                "classes": dict(getattr(self.model, "classes", {})),
                "instances": sample["instances"],
                "words": sample["words"],
                "question": sample["record"]["question"],
                "question_type": sample["record"]["kind"],
                "prediction": sample["record"]["said"],
                "blank": sample["record"]["blank"],
                "references": sample["record"]["texts"],
                "correct": self.correctness(sample["record"]),
            }
            for sample in chosen[:n]
        ]


def check_unique(keys: Sequence[Hashable]) -> None:
    """Raises a UserError where an id occurs twice: an average would count it twice, a result file not at all."""
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} ids occur more than once in the data set to evaluate, such as {twice[0]!r}.")


def scan(source: Any) -> Iterator[Mapping[str, Any]]:
    """Evenly spaced examples of a source, at most SCANNED; images stay encoded."""
    count = 0 if source is None else len(source)
    stride = max(1, -(-count // SCANNED))
    return (source[i] for i in range(0, count, stride))


def local_rows(array: Any) -> np.ndarray:
    """The rows of a batch array that this process put there, in their order."""
    if jax.process_count() == 1:
        return jax.device_get(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([jax.device_get(parts[start]) for start in sorted(parts)])


def gather(records: list[Any]) -> list[Any]:
    """The records of all processes, in their order; each is anything that JSON can write."""
    if jax.process_count() == 1:
        return records
    data = np.frombuffer(json.dumps(records).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([data.size])))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [record for row, size in zip(rows, sizes, strict=True) for record in json.loads(bytes(row[:size]))]


def progress(items: Iterable[Any], total: int, title: str, *, quiet: bool) -> Iterator[Any]:
    """Passes items on under a progress bar, where there is a terminal and no other bar."""
    if quiet or not sys.stderr.isatty() or jax.process_index() != 0:
        yield from items
        return
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    try:
        bar.start()
    except LiveError:  # the training loop's own bar is on the screen
        yield from items
        return
    try:
        yield from bar.track(items, total=total, description=title)
    finally:
        bar.stop()
