"""The loader: batches of examples, where the batch of step s is a function of (seed, s).

A Grain chain: shuffle, repeat, load with random ops, mix, take this process's rows, batch. Random ops stand before the
choice of rows and nothing filters: row r of batch s is the same whatever the number of processes and workers, and
resuming is slicing at the step; no iterator state is saved.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import functools
import gc
import importlib
import itertools
import logging
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain.python as grain
import numpy as np
from absl import flags

from prismer_jax import runtime
from prismer_jax.config.values import check_seed, check_workers
from prismer_jax.errors import BadSample, UserError

Batch = dict[str, Any]

logger = logging.getLogger(__name__)

TRIES = 16  # so many bad samples in a row are no accident
WARNINGS = 10  # bad samples that are named one by one; more are only counted
BUCKETS = "prismer_jax.pp.buckets"  # imported for photos in tiles alone
PATIENCE = 1000  # examples over which the fraction of bad ones is judged at first


def train_batches(
    data: Sequence[dict[str, Any]],
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    num_workers: int = 0,
    num_threads: int | None = None,
    rows: Sequence[int] | None = None,
    max_bad_fraction: float = 0.01,
) -> TrainBatches:
    """Returns the endless batches of a training run from `first_step` on: this process's rows of each global batch.

    Args:
      data: the mixture, each {'source': ..., 'pp': ..., 'weight': 1.0, 'start': 0}, the step from which on it is mixed
        in; a source has __len__ and __getitem__, and may have order(order, batch_size, seed) -> another function of
        the place.
      batch_size: of all processes together.
      seed: of the order, of the augmentations and of what replaces bad samples.
      first_step: of the first batch; a resumed run passes the step of its checkpoint.
      num_workers: worker processes; 0 loads in threads of this one, which is enough where decoding dominates.
      num_threads: threads, of each worker too; by default one a core, or one in a worker.
      rows: of each batch, those that this process's devices hold (sharding.rows_of); all by default.
      max_bad_fraction: of samples that raise BadSample and are replaced by others, chosen by the same seed.

    Raises:
      UserError: nothing to load, or numbers that cannot be. While iterating: too many bad samples, examples of
        different shapes, or whatever an op reports.
    """
    rows = _valid_rows(batch_size, rows)
    check_seed(seed)
    if not isinstance(max_bad_fraction, int | float) or not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max_bad_fraction={max_bad_fraction!r}: a number from 0 to 1.")
    parts, weights = [], []
    for number, part in enumerate(data):
        if not len(part["source"]):
            raise UserError(f"Data set {number + 1} of the mixture is empty. Check its split and limit.")
        if not 0 < (weight := float(part.get("weight", 1.0))) < float("inf"):
            raise UserError(f"Data set {number + 1} of the mixture has weight {weight}: leave it out, or raise it.")
        own_seed = np.random.SeedSequence([seed, number]).generate_state(1)
        indices = grain.MapDataset.range(len(part["source"])).seed(int(own_seed[0])).shuffle().repeat(None)
        if hasattr(part["source"], "order"):
            order = part["source"].order(indices, batch_size, int(own_seed[0]))
            indices = grain.MapDataset.range(sys.maxsize).seed(int(own_seed[0])).map(order)
        parts.append(indices.random_map(_TrainExample(part["source"], part["pp"])))
        weights.append(weight)
    starts = [part.get("start", 0) * batch_size for part in data]
    if min(starts, default=1) > 0:
        raise UserError("The mixture has no data set that starts at step 0.")
    phases, taken = [], [0] * len(parts)  # examples of each part, which goes on where it was when another one starts
    for start, stop in itertools.pairwise([*sorted(set(starts)), sys.maxsize - 1]):
        there = [number for number, first in enumerate(starts) if first <= start]
        mix = functools.partial(grain.MapDataset.mix, weights=[weights[number] for number in there])
        phases.append(mix([parts[number][taken[number] :] for number in there])[: stop - start])
        numbered = mix([grain.MapDataset.range(number, sys.maxsize, len(parts)) for number in there])
        for number in there if stop in starts else ():  # the next of its numbers says how many came before
            following = map(numbered.__getitem__, itertools.count(stop - start))
            taken[number] += next(n for n in following if n % len(parts) == number) // len(parts)
    chain = grain.MapDataset.concatenate(phases)
    chain = grain.MapDataset.source(_Rows(chain, batch_size, rows)) if len(rows) < batch_size else chain
    chain = chain.batch(len(rows), batch_fn=functools.partial(_collate, trim=len(rows) == batch_size))
    return TrainBatches(_iterate(chain[first_step:], num_workers, num_threads), max_bad_fraction)


class TrainBatches(Iterator[Batch]):
    """Iterator of host batches; `close` stops its threads and workers, as a UserError does.

    Attributes:
      seen: examples so far; of rows of several samples, these.
      bad: of them, those that were bad; another took their place, unless their row had others.
      cut: of them, those whose text was cut to its length.
    """

    def __init__(self, batches: Iterator[Batch], max_bad_fraction: float) -> None:
        self._batches, self._max_bad_fraction = batches, max_bad_fraction
        self.seen = self.bad = self.cut = 0

    def __next__(self) -> Batch:
        batch = _next(self._batches)
        self.seen += batch.pop("_seen")
        self._count_bad(batch.pop("_bad"))
        cut = batch.pop("_cut")
        if cut and not self.cut:
            logger.warning("Some texts are longer than tokenize's length and are cut. Raise it to keep them whole.")
        self.cut += cut
        return batch

    def _count_bad(self, messages: list[str]) -> None:
        for message in messages:
            self.bad += 1
            if self.bad <= WARNINGS:
                more = " Further bad samples are only counted." if self.bad == WARNINGS else ""
                logger.warning("Bad sample %d, left out: %s%s", self.bad, message, more)
        if messages and self.bad > self._max_bad_fraction * max(self.seen, PATIENCE):
            self.close()
            raise UserError(
                f"{self.bad} bad samples among {self.seen} examples are more than "
                f"max_bad_fraction={self._max_bad_fraction} allows. The last: {messages[-1]}"
            )

    def close(self) -> None:
        """Stops threads and worker processes; what they have prepared is dropped."""
        self._batches.close()


def eval_batches(
    source: Any,
    pp: Any,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    num_workers: int = 0,
    numbers: Sequence[int] | None = None,
) -> EvalBatches:
    """Returns batches that cover each example of a source once, in order, as often as one iterates over them.

    The last batch is filled up with rows whose `_mask` is False; every process has the same number of batches. Row r of
    batch n is the example n * batch_size + r; `rows` are those that are wanted, as in `train_batches`. What is no array
    comes as `meta`, a list of one dict a row. `pp` may draw random numbers: they depend on the example alone. The row
    of a bad sample has a `_mask` of False too, and says in its `meta` why it is bad, {"error", "reason"}: whoever
    leaves it out has to say so. `numbers` names the batches wanted, all by default: a run that goes on leaves out those
    that it has.
    """
    rows = _valid_rows(batch_size, rows)
    if not len(source):
        raise UserError("The data set to evaluate on is empty. Check its split and limit.")
    every = np.arange(-(-len(source) // batch_size) * batch_size).reshape(-1, batch_size)
    indices = (every if numbers is None else every[np.asarray(numbers, int)])[:, np.asarray(rows)]
    examples = grain.MapDataset.source(indices.ravel()).map(_EvalExample(source, pp))
    collate = functools.partial(_collate, trim=indices.shape[1] == batch_size, meta=True)
    return EvalBatches(examples.batch(indices.shape[1], batch_fn=collate), num_workers)


@dataclasses.dataclass
class EvalBatches(Iterable[Batch]):
    """See `eval_batches`; `len` is the number of batches."""

    chain: grain.MapDataset
    num_workers: int

    def __len__(self) -> int:
        return len(self.chain)

    def __iter__(self) -> Iterator[Batch]:
        with contextlib.closing(_iterate(self.chain, self.num_workers)) as batches:
            for _ in range(len(self)):
                batch = _next(batches)
                del batch["_bad"], batch["_cut"], batch["_seen"]
                yield batch


def eval_example(source: Any, pp: Any, index: int) -> Batch:
    """Returns one example as `eval_batches` has it, for those who look at it again."""
    return pp(source[index], np.random.default_rng([0, index]))


def to_device(batches: Iterable[Batch], sharding: Any, size: int = 2) -> Iterator[Batch]:
    """Moves batches to devices as `placer` does, `size` of them ahead of the consumer.

    Closing the generator closes `batches`.
    """
    place = placer(sharding)
    ahead: collections.deque[Batch] = collections.deque()
    try:
        for batch in batches:
            ahead.append(place(batch))
            if len(ahead) > size:
                yield ahead.popleft()
        yield from ahead
    finally:
        if hasattr(batches, "close"):
            batches.close()


def placer(sharding: Any) -> Callable[[Batch], Batch]:
    """Returns a function that moves the arrays of a host batch to devices; what is no array stays on the host.

    Each process hands over the rows that its devices hold (sharding.rows_of), in their order.

    Args:
      sharding: of the arrays.

    Raises, when called:
      UserError: a batch cannot be divided over the devices of `sharding`.
    """
    import jax  # not at the top: loader processes import this module and have no use for a backend

    from prismer_jax.sharding import rows_of

    own, unit = len(rows_of(sharding, sharding.num_devices)), sharding.num_devices

    def put(value: np.ndarray) -> Any:
        shape = (len(value) * unit // own, *value.shape[1:])
        try:
            sharding.shard_shape(shape)
        except ValueError:
            raise UserError(f"A batch of {shape[0]} does not divide over the devices of {sharding}.") from None
        places = {row: place for place, row in enumerate(rows_of(sharding, shape[0]))}
        spans = [rows.indices(shape[0]) for rows, *_ in sharding.addressable_devices_indices_map(shape).values()]
        parts = [value[places[start] : places[start] + stop - start] for start, stop, _ in spans]
        parts = jax.device_put(parts, list(sharding.addressable_devices_indices_map(shape)))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return lambda batch: {k: put(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


def _valid_rows(batch_size: int, rows: Sequence[int] | None) -> Sequence[int]:
    if batch_size <= 0:
        raise UserError(f"A batch of {batch_size} has no rows; it must have at least 1.")
    if rows is not None and not (len(rows) and set(rows) <= set(range(batch_size))):
        raise UserError(f"The rows {list(rows)} are not some of a batch of {batch_size}.")
    return range(batch_size) if rows is None else rows


class _Rows:
    """The examples of a process: these rows of each batch of an endless chain."""

    def __init__(self, chain: grain.MapDataset, batch_size: int, rows: Sequence[int]) -> None:
        self.chain, self.batch_size, self.rows = chain, batch_size, rows

    def __len__(self) -> int:
        return len(self.chain) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(int(index), len(self.rows))
        return self.chain[batch * self.batch_size + self.rows[row]]


class _TrainExample:
    """Index -> the arrays of an example; a bad sample gives way to another, drawn by the same rng."""

    def __init__(self, source: Any, pp: Any) -> None:
        self.source, self.pp = source, pp

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        bad: list[str] = []
        while len(bad) < TRIES:
            try:
                example = self.pp(self.source[int(index)], rng)
                counts = {"_cut": int(example.get("_cut", 0)), "_seen": example.get("_samples", 1)}
                return _arrays(example) | counts | {"_bad": bad + example.get("_bad", [])}
            except BadSample as error:
                bad.append(str(error))
                index = rng.integers(len(self.source))
            except UserError as error:
                return {"_error": error}
        return {"_error": UserError(f"{TRIES} samples in a row are bad. The last: {bad[-1]}")}


class _EvalExample:
    """Index -> an example with its arrays and its `meta`; an empty row where it is bad, and beyond the source's end."""

    def __init__(self, source: Any, pp: Any) -> None:
        self.source, self.pp = source, pp

    def __call__(self, index: int) -> dict[str, Any]:
        empty = {"_bad": [], "_cut": 0, "_seen": 1, "_mask": np.bool_(False), "draw": np.uint32(0), "meta": {}}
        try:
            if int(index) >= len(self.source):
                return _arrays(self._filler) | empty
            try:
                example = eval_example(self.source, self.pp, int(index))
            except BadSample as error:
                return _arrays(self._filler) | empty | {"meta": {"error": str(error), "reason": error.reason}}
        except UserError as error:
            return {"_error": error}
        name = str(example.get("question_id", example.get("id", index))).encode()
        arrays = _arrays(example) | {"draw": np.uint32(zlib.crc32(name))}
        meta = {k: v for k, v in example.items() if k not in arrays and not k.startswith("_")}
        return empty | arrays | {"meta": meta | {"cut": bool(example.get("_cut"))}}

    @functools.cached_property
    def _filler(self) -> Batch:
        """The first good example: of empty rows, any of the right shapes serves."""
        errors = []
        for index in range(len(self.source)):
            try:
                return eval_example(self.source, self.pp, index)
            except BadSample as error:
                errors.append(str(error))
        raise BadSample(f"None of the {len(errors)} samples can be used. The first: {errors[0]}")


def _arrays(example: dict[str, Any]) -> dict[str, Any]:
    arrays = {k: v for k, v in example.items() if isinstance(v, np.ndarray) and v.dtype.kind in "biuf"}
    return arrays | {"_mask": np.bool_(True)}


def _collate(examples: Sequence[dict[str, Any]], trim: bool = False, meta: bool = False) -> Batch:
    """Stacks examples. Errors travel as `_error`: what worker processes raise comes with a traceback."""
    for example in examples:
        if "_error" in example:
            return {"_error": example["_error"]}
    batch: Batch = {
        "_bad": [message for example in examples for message in example["_bad"]],
        **{key: sum(example[key] for example in examples) for key in ("_cut", "_seen")},
    }
    if meta:
        batch["meta"] = [example["meta"] for example in examples]
    specs = [{k: (v.dtype, v.shape) for k, v in example.items() if k not in batch} for example in examples]
    for other in specs[1:]:
        if other != specs[0]:
            differ = sorted(k for k in specs[0].keys() | other.keys() if specs[0].get(k) != other.get(k))
            seen = ", ".join(f"{k} {_written(specs[0].get(k))} and {_written(other.get(k))}" for k in differ)
            remedy = "Give all chains the same labels_for and sizes, and each key one type."
            return {"_error": UserError(f"Examples of one batch differ: {seen}. {remedy}")}
    if trim and "image_mask" in specs[0]:  # `trim` where no other process has a part of the batch
        examples = importlib.import_module(BUCKETS).trimmed(examples)
    for key in specs[0]:
        # A third of the time of np.stack, which was a tenth of the loader's.
        batch[key] = rows = np.empty((len(examples), *examples[0][key].shape), examples[0][key].dtype)
        for row, example in enumerate(examples):
            rows[row] = example[key]
    return batch


def _written(spec: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "absent" if spec is None else f"{spec[0]} {spec[1]}"


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        batch = next(batches)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError("A loader process died, out of memory perhaps. Try fewer num_workers, or 0.") from None
    if "_error" in batch:
        batches.close()
        raise batch["_error"]
    return batch


def _iterate(chain: grain.MapDataset, num_workers: int, num_threads: int | None = None) -> Iterator[Batch]:
    check_workers(num_workers)
    # Python runs one thread at a time: decoding scales to some threads, not to a server's hundred cores.
    num_threads = (1 if num_workers else min(runtime.cores(), 16)) if num_threads is None else num_threads
    # Elements are whole batches: Grain's default of 500 prefetched ones would fill the memory.
    dataset = chain.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain hands absl flags to its workers
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_ignore_interrupts)
    return iter(dataset)


@atexit.register
def _free_shared_memory() -> None:
    """Waits for the thread in which Grain frees batches of workers. Python would end it and warn of what is left."""
    if pool := getattr(grain.SharedMemoryArray, "_del_thread_pool", None):
        gc.collect()  # JAX drops NumPy arrays that its own were made of no sooner
        pool.apply(int)


def _ignore_interrupts(worker: int, count: int) -> None:
    """Ctrl-C reaches the whole process group; the main process ends the workers, without a traceback from each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
