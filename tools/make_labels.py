"""Labels photos with experts: python -m tools.make_labels --images DIR --output DIR --experts depth,normal,edge
--checkpoints DIR

Photos may be of any kind and size, mixed, in folders of any depth. Labels lie as in the official repository:
OUTPUT/<expert>/<photo>.png, with .json or .npz beside it for detection and words. Run it again after a stop: what is
there is kept. A photo that cannot be labelled is one line on stderr and one entry in OUTPUT/skipped.json, and the exit
status is 1.

--checkpoints is a folder of official files (python -m tools.download experts), of folders that python -m tools.convert
expert wrote and that are called as the expert, or of both.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from prismer_jax import config, labels, runtime, sharding
from prismer_jax.datasets import lists
from prismer_jax.errors import BadSample, UserError, choose, run_main
from prismer_jax.experts import EXPERTS, Expert, Label, pipeline, weights
from prismer_jax.experts.pipeline import Photo
from prismer_jax.pp.image import image_size

RECORD = "make_labels.json"  # which weights made the labels of each expert
SKIPPED = "skipped.json"
TRAINED, RANDOM = "trained weights", "random weights"
SAY_EVERY = 30  # seconds
DTYPES = ("float32", "bfloat16")


class Job:
    """Photos of a folder, labels into another, and what could not be labelled."""

    def __init__(self, images: pathlib.Path, output: pathlib.Path, limit: int | None = None) -> None:
        self.images, self.output = images, output
        self.skipped: list[dict[str, str | None]] = []
        output.mkdir(parents=True, exist_ok=True)
        if output.resolve().is_relative_to(images.resolve()):
            raise UserError(f"{output}: lies in the folder of the photos, whose label maps would be photos next time.")
        self.photos = list(self._find(limit))

    def _find(self, limit: int | None) -> Iterator[Photo]:
        source = lists.load(images=self.images, limit=limit)
        paths = [source[i]["image"] for i in range(len(source))]
        taken: dict[pathlib.Path, str] = {}
        with ThreadPoolExecutor(pipeline.THREADS) as pool:
            for path, size in zip(paths, pool.map(_size_or_problem, paths), strict=True):
                name = str(pathlib.Path(path).relative_to(self.images))
                first = taken.setdefault(labels.path_of("", "", name), name)
                if first != name:
                    size = f"{path}: its label files would be those of {first}. Rename one of them."
                if isinstance(size, str):
                    self.skip(name, None, size)
                else:
                    yield Photo(name, path, size)

    def skip(self, image: str, expert: str | None, reason: str) -> None:
        print(f"skipped: {reason}", file=sys.stderr)
        self.skipped.append({"image": image, "expert": expert, "reason": reason})

    def report(self) -> None:
        """Writes the list of what was skipped."""
        config.write(self.output / SKIPPED, json.dumps(self.skipped, indent=2))

    def claim(self, expert: str, made_with: str) -> None:
        """Notes which weights make the labels of an expert, so that they are never mixed with others' by accident."""
        path = self.output / RECORD
        record = json.loads(path.read_text()) if path.exists() else {}
        if record.get(expert, made_with) != made_with:
            raise UserError(
                f"{self.output}: holds labels of {expert} made with {record[expert]}, not with {made_with}. Choose "
                f"another --output, or delete {self.output / expert} and {path}."
            )
        config.write(path, json.dumps({**record, expert: made_with}, indent=2))

    def todo(self, expert: Expert) -> list[Photo]:
        return [photo for photo in self.photos if not labels.is_whole(self.output, expert.name, photo.name)]

    def needed(self, expert: Expert, photo: Photo) -> Mapping[str, Label]:
        """The labels of a photo by the experts that this one needs."""
        found = {}
        for name in expert.needs:
            path = labels.path_of(self.output, name, photo.name)
            if not labels.is_whole(self.output, name, photo.name):
                raise BadSample(f"{photo.name}: has no label of {name}, which {expert.name} needs.")
            decoded = labels.decode(name, path.read_bytes(), str(path))
            found[name] = Label(labels.blank(name, *photo.size) if decoded is None else decoded)
        return found

    def write(self, expert: Expert, photo: Photo, label: Label) -> None:
        labels.write(
            self.output,
            expert.name,
            photo.name,
            label.map,
            classes=label.classes,
            features=label.features,
            words=label.words,
        )


def _size_or_problem(path: str) -> tuple[int, int] | str:
    try:
        return image_size(path)
    except BadSample as error:
        return str(error)


def run(job: Job, expert: Expert, load: Any, mesh: jax.sharding.Mesh, batch_size: int) -> None:
    """Makes an expert's labels that are not there; `load` gives its weights when they are needed."""
    photos = job.todo(expert)
    shapes, problems = pipeline.shapes_of(expert, photos)
    for photo, problem in problems.items():
        job.skip(photo.name, expert.name, problem)
    there = len(job.photos) - len(photos)
    if not shapes:
        print(f"{expert.name}: {there} labels were there, nothing to do")
        return
    kinds = len(set(shapes.values()))
    print(
        f"{expert.name}: {len(shapes)} photos ({there} labels were there), {kinds} shape{'s'[: kinds > 1]} to compile"
    )
    variables = jax.device_put(load(), sharding.replicated(mesh))
    started, done = time.monotonic(), 0
    work = pipeline.run(
        expert,
        variables,
        shapes,
        lambda photo, label: job.write(expert, photo, label),
        lambda photo: job.needed(expert, photo),
        mesh=mesh,
        batch_size=batch_size,
    )
    with _progress(expert.name, len(shapes)) as advance:
        for photo, problem in work:
            if problem is not None:
                job.skip(photo.name, expert.name, problem)
            done += problem is None
            advance()
    seconds = time.monotonic() - started
    print(f"{expert.name}: {done} labels in {seconds:.0f} s, {done / seconds:.2f} a second, compilation included")


@contextmanager
def _progress(title: str, total: int) -> Iterator[Any]:
    """A bar with rate and time left; where stderr is no terminal, a line every half minute."""
    from rich import progress
    from rich.console import Console

    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, rate="compiling")
        started = said = time.monotonic()

        def advance() -> None:
            nonlocal said
            bar.advance(task)
            done, now = int(bar.tasks[0].completed), time.monotonic()
            speed = done / (now - started)
            bar.update(task, rate=f"{speed:.2f} photos/s")
            if not console.is_terminal and now - said > SAY_EVERY:
                left = datetime.timedelta(seconds=round((total - done) / speed))
                print(f"{title}: {done} of {total}, {speed:.2f} photos/s, {left} left", file=sys.stderr)
                said = now

        yield advance


def choose_experts(spec: str) -> list[type[Expert]]:
    """The experts of 'depth,edge' or 'all', each after those that it needs."""
    names = labels.select(spec.replace(",", "+"))
    for name in names:
        choose("expert", name, EXPERTS)
    return [expert for name, expert in EXPERTS.items() if name in names]


def check_needs(job: Job, chosen: Sequence[type[Expert]]) -> None:
    """Raises a UserError where labels that an expert needs are neither there nor going to be."""
    made = {expert.name for expert in chosen}
    for expert in chosen:
        for name in set(expert.needs) - made:
            if not any(labels.is_whole(job.output, name, photo.name) for photo in job.photos):
                raise UserError(
                    f"{expert.name} needs labels of {name}, which {job.output} lacks: add {name} to --experts."
                )


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(
        prog="python -m tools.make_labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, type=pathlib.Path, help="folder of photos, searched recursively")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for the labels")
    parser.add_argument("--experts", default="all", help=f"of {','.join(EXPERTS)}; default all of the paper's")
    parser.add_argument("--checkpoints", type=pathlib.Path, help="folder of official files or converted folders")
    parser.add_argument("--random-weights", action="store_true", help="meaningless labels, for tests and timing")
    parser.add_argument("--batch-size", type=int, default=4, help="photos at a time; default 4")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="that the networks compute in")
    parser.add_argument("--limit", type=int, help="only the first N photos")
    args, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"Unknown argument --config.{overrides[0]}: nothing here has a config.")
    if args.batch_size < 1 or (args.limit is not None and args.limit < 1):
        raise UserError("--batch-size and --limit must be at least 1.")
    if (args.checkpoints is None) != args.random_weights:
        raise UserError("Give either --checkpoints DIR, a folder of the experts' weights, or --random-weights.")
    if not args.images.is_dir():
        raise UserError(f"{args.images}: no such folder of photos.")
    chosen = choose_experts(args.experts)
    runtime.use_compilation_cache()
    runtime.log_warnings()
    if args.random_weights:
        print("WARNING: random weights: these labels mean nothing. They are for tests and timing.", file=sys.stderr)
    job = Job(args.images, args.output, args.limit)
    check_needs(job, chosen)
    mesh, experts = sharding.make_mesh(), [kind(dtype=args.dtype) for kind in chosen]
    for expert in experts:  # all before the first works for hours
        if not args.random_weights:
            expert.open(weights.find(expert, args.checkpoints))
        job.claim(expert.name, RANDOM if args.random_weights else TRAINED)
    try:
        for expert in experts:
            load = (
                expert.random_variables
                if args.random_weights
                else functools.partial(weights.load, expert, args.checkpoints)
            )
            run(job, expert, load, mesh, args.batch_size)
    finally:
        job.report()
    if args.random_weights:
        print("WARNING: these labels mean nothing: they were made with random weights.", file=sys.stderr)
    if job.skipped:
        photos = len({entry["image"] for entry in job.skipped})
        print(f"{photos} photos were skipped, wholly or by an expert: see {job.output / SKIPPED}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
