"""Many photos through one expert: threads decode ahead of the device and write behind it, batches are of one shape.

    for result in pipeline.run(expert, load, items, read, write, mesh=mesh, batch_size=8):
        ...  # result.problem is None where `write` has been called, or there was nothing to do

Where photos come from and where labels go is the caller's. Photos may come in any order: each waits for others whose
prepared image has its shape, so that every shape is compiled once. None waits for ever, see BORDER.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from prismer_jax import sharding
from prismer_jax.errors import BadSample
from prismer_jax.experts.expert import Arrays, Expert, Label
from prismer_jax.label_png import MAX_PIXELS
from prismer_jax.pp.image import read_image

A, B, T = TypeVar("A"), TypeVar("B"), TypeVar("T")
THREADS = 4  # for reading, and as many for writing


@dataclass(frozen=True)
class Photo:
    """A photo to label.

    Attributes:
      name: of its label files, and what messages call it.
      source: a path, encoded bytes, or upright uint8 RGB [h, w, 3].
      id: unique in its data set.
      labels: what the data set has of it already: `labels/<expert>` as a path or encoded bytes.
    """

    name: str
    source: str | bytes | np.ndarray
    id: str = ""
    labels: Mapping[str, str | bytes] = field(default_factory=dict)


class Border:
    """Between two items, such as the last of a shard and the first of the next."""

    def __repr__(self) -> str:
        return "BORDER"


# Photos in front of the last border but one wait no longer for others of their shape: a shard's last ones are filled up
# with the first ones of the next shard, and only shapes that are rare in both go to the device in a part of a batch.
BORDER = Border()


@dataclass(frozen=True)
class Result(Generic[T]):
    """What became of an item.

    Attributes:
      photo: None if it could not be had, or needed not be.
      problem: why it has no label; None if it has.
    """

    item: T
    photo: Photo | None
    problem: BadSample | None = None


@dataclass(frozen=True)
class Work(Generic[T]):
    """An item on its way: first its prepared arrays, then what the network says of it; or why it goes no further."""

    item: T
    photo: Photo | None
    arrays: Arrays = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    problem: BadSample | None = None


class Busy:
    """How long the device had something to do, measured where it becomes ready; compiling counts, loading does not."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._until = self._seconds = 0.0

    def share(self) -> float:
        """Returns the device's busy share of the time from the first batch to the end of the last; 1 is no wait."""
        return 0.0 if self._first is None else self._seconds / max(self._until - self._first, 1e-9)

    def watch(self, outputs: Any, started: float) -> None:
        """Waits for a batch that was begun then, after those before it; runs in a thread of its own."""
        jax.block_until_ready(outputs)
        ended = time.monotonic()
        self._first = started if self._first is None else self._first
        self._seconds += ended - max(started, self._until)
        self._until = ended


def run(
    expert: Expert,
    load: Callable[[], Any],
    items: Iterable[T | Border],
    read: Callable[[T], Photo | None],
    write: Callable[[T, Photo, Any], None],
    needed: Callable[[T, Photo, tuple[int, int]], Mapping[str, Label]] = lambda item, photo, size: {},
    *,
    mesh: Mesh,
    batch_size: int,
    threads: int = THREADS,
    busy: Busy | None = None,
) -> Iterator[Result[T]]:
    """Labels photos; yields the result of each item when its label is written, or was there, or cannot be made.

    Args:
      load: gives the expert's variables; called when the first batch is ready, so never if nothing is to do.
      items: anything that names a photo; taken only as far ahead as the threads need.
      read: an item's photo, or None if it has its label already; called in threads; may raise BadSample.
      write: gets what `Expert.finish` gave; called in threads; an error that is no BadSample stops the run.
      needed: a photo's labels, of its size (height, width), by the experts that this one needs; called in threads; may
        raise BadSample.
      mesh: of this process's devices, which share the batches.
      batch_size: photos at a time. A batch that is not full goes at the size that was compiled for its shape, or, if
        none was, at its own.
      busy: measures the device.
    """

    def prepare(item: T | Border) -> Work[T] | Border:
        if isinstance(item, Border):
            return item
        photo = None
        try:
            if (photo := read(item)) is None:
                return Work(item, None)
            pixels = read_image(photo.source, MAX_PIXELS, photo.name)
            expert.shape(*pixels.shape[:2])  # whether the expert can look at it
            return Work(item, photo, expert.prepare(pixels), pixels.shape[:2])
        except BadSample as error:
            return Work(item, photo, problem=_named(photo, error))

    def finish(work: Work[T]) -> Result[T]:
        if work.problem is not None or work.photo is None:
            return Result(work.item, work.photo, work.problem)
        try:
            label = expert.finish(work.arrays, work.size, needed(work.item, work.photo, work.size))
            write(work.item, work.photo, expert.complete(variables(), label))
        except BadSample as error:
            return Result(work.item, work.photo, _named(work.photo, error))
        return Result(work.item, work.photo)

    @functools.cache
    def variables() -> Any:
        return jax.device_put(load(), sharding.replicated(mesh))

    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        window = 2 * max(batch_size, threads)
        batches = _batches(ahead(readers, prepare, items, window), batch_size)
        computed = _compute(expert, variables, batches, mesh, busy or Busy())
        yield from ahead(writers, finish, computed, window)


def ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], window: int) -> Iterator[B]:
    """`map` in threads, in order, at most `window` items ahead of what is taken."""
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _batches(prepared: Iterable[Work[T] | Border], batch_size: int) -> Iterator[tuple[list[Work[T]], int]]:
    """Yields (works of one shape, the batch size to run them at); (works, 0) of what the device has nothing to do with.

    A batch that is not full goes when its first photo has seen two borders, and at the end.
    """
    waiting: dict[Any, list[Work[T]]] = {}
    first: dict[Any, int] = {}  # how many borders there had been when a batch's first photo came
    compiled: defaultdict[Any, int] = defaultdict(int)
    borders = 0

    def go(shape: Any) -> tuple[list[Work[T]], int]:
        batch = waiting.pop(shape)
        if len(batch) > compiled[shape]:
            # Twice at most: at what there was at first, then in full.
            compiled[shape] = batch_size if compiled[shape] else len(batch)
        return batch, compiled[shape]

    for work in prepared:
        if isinstance(work, Border):
            borders += 1
            for shape in [shape for shape in waiting if first[shape] < borders - 1]:
                yield go(shape)
        elif work.problem is not None or work.photo is None:
            yield [work], 0
        else:
            shape = tuple(sorted((name, array.shape) for name, array in work.arrays.items()))
            batch = waiting.setdefault(shape, [])
            if not batch:
                first[shape] = borders
            batch.append(work)
            if len(batch) == batch_size:
                yield go(shape)
    for shape in list(waiting):
        yield go(shape)


def _compute(
    expert: Expert,
    variables: Callable[[], Any],
    batches: Iterable[tuple[list[Work[T]], int]],
    mesh: Mesh,
    busy: Busy,
) -> Iterator[Work[T]]:
    """Batches on the device; while it computes one, the rows of the last one go on."""
    last: tuple[list[Work[T]], Any] | None = None
    with ThreadPoolExecutor(1) as watcher:
        for batch, size in batches:
            if not size:
                yield from batch
                continue
            weights = variables()
            started = time.monotonic()
            outputs = expert.run(weights, [work.arrays for work in batch], mesh, size)
            watcher.submit(busy.watch, outputs, started)
            if last is not None:
                yield from _rows(*last)
            last = batch, outputs
        if last is not None:
            yield from _rows(*last)


def _rows(works: Sequence[Work[T]], outputs: Mapping[str, jax.Array]) -> Iterator[Work[T]]:
    arrays = jax.device_get(outputs)
    for row, work in enumerate(works):
        yield Work(work.item, work.photo, {name: array[row] for name, array in arrays.items()}, work.size)


def _named(photo: Photo | None, error: BadSample) -> BadSample:
    if photo is None or photo.name in str(error):
        return error
    return BadSample(f"{photo.name}: {error}", error.reason)
