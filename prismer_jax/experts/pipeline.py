"""Many photos through one expert: threads decode ahead of the device and write behind it, batches are of one shape.

    shapes, problems = pipeline.shapes_of(expert, photos)
    for photo, problem in pipeline.run(expert, variables, shapes, write, mesh=mesh, batch_size=8):
        ...  # problem is None where `write` has been called

Where photos come from and where labels go is the caller's: a folder today, shards of a data set tomorrow.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from prismer_jax.errors import BadSample
from prismer_jax.experts.expert import Arrays, Expert, Label
from prismer_jax.labels import MAX_PIXELS
from prismer_jax.pp.image import read_image

A, B = TypeVar("A"), TypeVar("B")
THREADS = 4  # for decoding, and as many for writing


@dataclass(frozen=True)
class Photo:
    """A photo to label.

    Attributes:
      name: its path relative to the photos' folder, which names its label files.
      source: a path, or encoded bytes.
      size: (height, width), upright.
    """

    name: str
    source: str | bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class _Work:
    """A photo on its way: first its prepared arrays, then what the network says of it; or what is wrong with it."""

    photo: Photo
    arrays: Arrays
    size: tuple[int, int]
    problem: str | None = None


Write = Callable[[Photo, Label], None]
Needed = Callable[[Photo], Mapping[str, Label]]


def shapes_of(expert: Expert, photos: Sequence[Photo]) -> tuple[dict[Photo, tuple[int, int]], dict[Photo, str]]:
    """Returns ({photo: shape of its prepared image}, sorted by shape; {photo: why the expert cannot look at it})."""
    shapes, problems = {}, {}
    for photo in photos:
        try:
            shapes[photo] = expert.shape(*photo.size)
        except BadSample as error:
            problems[photo] = _named(photo, error)
    return dict(sorted(shapes.items(), key=lambda item: item[1])), problems


def run(
    expert: Expert,
    variables: Any,
    shapes: Mapping[Photo, tuple[int, int]],
    write: Write,
    needed: Needed = lambda photo: {},
    *,
    mesh: Mesh,
    batch_size: int,
    threads: int = THREADS,
) -> Iterator[tuple[Photo, str | None]]:
    """Labels photos; yields each with None when `write` is done with its label, or with what is wrong with it.

    Args:
      variables: replicated on the mesh.
      shapes: of `shapes_of`. Every shape is compiled once, for batches of batch_size or of all photos of that shape.
      write: called in threads; an error that is no BadSample stops the run.
      needed: labels of the experts that this one needs; called in threads; may raise BadSample.
    """

    def prepare(photo: Photo) -> _Work:
        try:
            pixels = read_image(photo.source, MAX_PIXELS, photo.name)
            return _Work(photo, expert.prepare(pixels), pixels.shape[:2])
        except BadSample as error:
            return _Work(photo, {}, photo.size, _named(photo, error))

    def finish(work: _Work) -> tuple[Photo, str | None]:
        if work.problem is not None:
            return work.photo, work.problem
        try:
            label = expert.finish(work.arrays, work.size, needed(work.photo))
            write(work.photo, expert.complete(variables, label))
        except BadSample as error:
            return work.photo, _named(work.photo, error)
        return work.photo, None

    counts = Counter(shapes.values())
    sizes = {photo: min(batch_size, counts[shape]) for photo, shape in shapes.items()}
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        prepared = _ahead(readers, prepare, shapes, 2 * batch_size)
        found = _compute(expert, variables, prepared, sizes, mesh)
        yield from _ahead(writers, finish, found, 2 * batch_size)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], window: int) -> Iterator[B]:
    """`map` in threads, in order, at most `window` items ahead of what is taken."""
    pending: deque[Any] = deque()
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


def _compute(
    expert: Expert, variables: Any, prepared: Iterator[_Work], sizes: Mapping[Photo, int], mesh: Mesh
) -> Iterator[_Work]:
    """Batches on the device; while it computes one, the rows of the last one go on."""
    batch: list[_Work] = []
    last: tuple[list[_Work], Any] = ([], {})

    def start() -> Iterator[_Work]:
        nonlocal batch, last
        outputs = expert.run(variables, [work.arrays for work in batch], mesh, sizes[batch[0].photo])
        done, last, batch = last, (batch, outputs), []
        yield from _rows(*done)

    for work in prepared:
        if work.problem is not None:
            yield work
            continue
        if batch and _shape_of(work) != _shape_of(batch[0]):
            yield from start()
        batch.append(work)
        if len(batch) == sizes[batch[0].photo]:
            yield from start()
    if batch:
        yield from start()
    yield from _rows(*last)


def _shape_of(work: _Work) -> Any:
    return sorted((name, array.shape) for name, array in work.arrays.items())


def _rows(works: Sequence[_Work], outputs: Mapping[str, jax.Array]) -> Iterator[_Work]:
    arrays = jax.device_get(outputs)
    for row, work in enumerate(works):
        yield _Work(work.photo, {name: array[row] for name, array in arrays.items()}, work.size)


def _named(photo: Photo, error: BadSample) -> str:
    return str(error) if photo.name in str(error) else f"{photo.name}: {error}"
