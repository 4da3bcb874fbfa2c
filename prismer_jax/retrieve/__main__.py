"""Finds photos by what is in them: python -m prismer_jax.retrieve --checkpoint DIR --images DIR --query "..."

    python -m prismer_jax.retrieve --checkpoint models/blip2 --images photos/ --query "a red bus" "two cats"
    python -m prismer_jax.retrieve --checkpoint models/blip2 --images photos/ --texts captions.json --output found.json

Photos are encoded once, into --index, and again only where they changed; a run that was stopped goes on. The photos
most like a text are ranked again by the model that reads both. The checkpoint is a model of stage 1 of BLIP-2.
"""

from __future__ import annotations

import heapq
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import config, datasets, runtime
from prismer_jax.captioner import Captioner
from prismer_jax.captioner.comparing import Comparer, compared
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.datasets import formats
from prismer_jax.datasets.formats.reading import LINES
from prismer_jax.errors import BadSample, UserError, run_main
from prismer_jax.files import progress, storage, versions
from prismer_jax.labels import EXPERTS
from prismer_jax.retrieve.index import Index

LISTS = (".json", *LINES, ".csv", ".tsv", ".parquet")  # files that are no lines of texts
PART = 1024  # photos in a part of the index
TEXTS = 64  # that a part is compared with at once


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.retrieve", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, type=storage.folder, help="a workdir or an export")
    parser.add_argument("--images", nargs="+", required=True, type=storage.on_disk, help="photos, or folders of them")
    parser.add_argument("--labels", type=storage.on_disk, help="folder of expert labels")
    parser.add_argument("--query", nargs="+", default=[], help="texts to find photos by")
    parser.add_argument(
        "--texts", type=storage.on_disk, help="a file with one a line, a JSON list, or a list of captions"
    )
    parser.add_argument("--index", type=storage.on_disk, help="folder of the photos' vectors; default IMAGES.index")
    parser.add_argument("--top", type=int, default=5, help="photos to find for each text")
    parser.add_argument("--rerank", type=int, default=16, help="so many, the most alike, are ranked again; 0 for none")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=storage.on_disk, help="a JSON file for what is found")
    args = parser.parse_flags(argv, "a checkpoint carries its own config")
    if args.top < 1 or args.batch_size < 1 or args.rerank < 0:
        raise UserError("--top and --batch-size must be at least 1, --rerank at least 0.")
    texts = _texts(args.query, args.texts)
    runtime.use_compilation_cache()
    runtime.log_warnings()
    captioner = Captioner(args.checkpoint)
    comparer = captioner.comparer()
    source = datasets.load("photos", images=args.images, labels=args.labels, experts=captioner.model.experts)
    header = {"how": dict(comparer.how), "weights": fingerprint(captioner.variables)}
    beside = pathlib.Path(f"{os.path.abspath(args.images[0])}.index")  # also of '.', which has no name
    index = Index(args.index or beside, json.loads(json.dumps(header)))
    size = min(args.batch_size, len(source))
    places = encode(comparer, source, index, size)
    matches = find(comparer, source, index, places, texts, args.top, args.rerank, size)
    for text, photos in zip(texts, matches, strict=True):
        for photo in photos:
            print(f"{text}: {photo['image']} ({', '.join(f'{k} {v:.3f}' for k, v in photo.items() if k != 'image')})")
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(args.output, [{"text": t, "photos": p} for t, p in zip(texts, matches, strict=True)])
    if captioner.left_out:
        print(f"{len(captioner.left_out)} of {len(source)} photos were left out.", file=sys.stderr)
        sys.exit(1)


def encode(comparer: Comparer, source: Any, index: Index, batch_size: int) -> dict[str, int]:
    """Encodes the photos that the index does not have as they are now; returns {id: place in the source}."""
    places, damaged = {}, []
    for place in range(len(source)):
        try:
            places[source[place]["id"]] = place
        except BadSample:  # of a label; it is named when it is read
            damaged.append(place)
    encoded = {
        image
        for images, files, _ in index.parts()
        for image, file in zip(images, files, strict=True)
        if image in places and file == _file(source[places[image]])
    }
    todo = [*damaged, *(place for image, place in places.items() if image not in encoded)]
    spare = [places[image] for image in encoded][:1]  # read beside others, which may all be damaged
    with progress.bar("encoding", len(todo)) as advance:
        for start in range(0, len(todo), PART):
            some = todo[start : start + PART]
            before = [_state(source, place) for place in some]
            rows = [row for row in comparer.read(_Some(source, some + spare), batch_size) if row.place < len(some)]
            now = {row.place: _state(source, some[row.place]) for row in rows}
            changed = [place for place, state in now.items() if state is None or state != before[place]]
            for place in changed:
                name = source.name(some[place])
                print(f"{name}: changed while it was read; left out. Run it again.", file=sys.stderr)
            rows = [row for row in rows if row.place not in changed]
            if rows:
                files = [before[row.place] for row in rows]
                index.add([row.image for row in rows], files, np.stack([row.vectors for row in rows]))
            advance(len(some))
    return places


def find(
    comparer: Comparer,
    source: Any,
    index: Index,
    places: Mapping[str, int],
    texts: Sequence[str],
    top: int,
    rerank: int,
    batch_size: int,
) -> list[list[dict[str, Any]]]:
    """Returns for each text [{"image", "itc"[, "itm", "score"]}] of the best photos, the best first."""
    if not texts:
        return []
    vectors, best, seen = comparer.texts(texts), [[] for _ in texts], set[str]()
    for images, files, photos in index.parts():
        new = ((row, image) for row, image in enumerate(images) if image in places and image not in seen)
        current = [row for row, image in new if files[row] == _file(source[places[image]])]
        seen.update(images[row] for row in current)
        photos, names = photos[current].astype(np.float32), [images[row] for row in current]
        for start in range(0, len(texts), TEXTS):
            likeness = (photos @ vectors[start : start + TEXTS].T).max(1)  # [n q t] of a query each; [n t]
            for text, column in enumerate(likeness.T, start):
                some = zip(column.tolist(), names, strict=True)
                best[text] = heapq.nlargest(max(top, rerank), [*best[text], *some])
    matches = [[{"image": image, "itc": value} for value, image in rows] for rows in best]
    if rerank:
        again = rank_again(comparer, source, places, texts, vectors, [rows[:rerank] for rows in matches], batch_size)
        matches = [first + rows[rerank:] for first, rows in zip(again, matches, strict=True)]
    return [rows[:top] for rows in matches]


def rank_again(
    comparer: Comparer,
    source: Any,
    places: Mapping[str, int],
    texts: Sequence[str],
    vectors: np.ndarray,
    matches: Sequence[Sequence[Mapping[str, Any]]],
    batch_size: int,
) -> list[list[dict[str, Any]]]:
    """Returns the photos that were found by each text, by the score of the model that reads both."""
    texts_of: dict[int, list[int]] = {}
    for text, rows in enumerate(matches):
        for row in rows:
            texts_of.setdefault(places[row["image"]], []).append(text)
    again: list[list[dict[str, Any]]] = [[] for _ in texts]
    for row in comparer.read(_Some(source, list(texts_of)), batch_size, texts, list(texts_of.values())):
        numbers = list(texts_of.values())[row.place]
        columns = compared(row, vectors[numbers])
        for place, number in enumerate(numbers):
            again[number].append({"image": row.image} | {name: values[place] for name, values in columns.items()})
    return [sorted(rows, key=lambda row: -row["score"]) for rows in again]


def _texts(query: Sequence[str], path: pathlib.Path | None) -> list[str]:
    """Returns the texts to find photos by, each once."""
    texts = [*query, *([] if path is None else _texts_in(path))]
    if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise UserError(f"{path or '--query'}: {wrong[0]!r} is no text to find photos by.")
    once = list(dict.fromkeys(text.strip() for text in texts))
    if len(once) < len(texts):
        print(f"{len(texts) - len(once)} texts are there more than once; each is asked once.", file=sys.stderr)
    return once


def _texts_in(path: pathlib.Path) -> list[Any]:
    """Returns the texts of a file: one a line, a JSON list of them, or the captions of a list of photos.

    Raises:
      UserError: it is none of these.
    """
    if path.suffix.lower() not in LISTS:
        try:
            # Not str.splitlines: texts may hold U+2028 and the like.
            return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a file of texts, a JSON list or one a line ({error}).") from None
    content = formats.read(path)
    if isinstance(content, list) and not any(isinstance(entry, Mapping) for entry in content):
        return content
    left_out = formats.LeftOut()
    captions = [text for row in formats.rows(path, left_out=left_out, content=content) for text in row.captions]
    texts = [text for text in captions if isinstance(text, str) and text.strip()]
    if len(texts) < len(captions):
        left_out.texts.add("empty caption, or one that is no text", count=len(captions) - len(texts))
    for line in (*left_out.entries.lines(), *left_out.texts.lines()):
        print(f"{path}: left out: {line.strip()}", file=sys.stderr)
    if not texts:
        raise UserError(f"{path}: has no captions to find photos by.")
    return texts


def _file(example: Mapping[str, Any]) -> list[int]:
    """Returns what tells a photo and its label files from what they were: the sums of their sizes and times."""
    paths = [example["image"], *(path for kind in EXPERTS.values() if (path := example.get(kind.key)))]
    return np.sum([versions.version(path) for path in paths], 0).tolist()


def _state(source: Any, place: int) -> list[int] | None:
    """Returns `_file` of a photo; None where it, or one of its labels, cannot be read."""
    try:
        return _file(source[place])
    except (BadSample, OSError):
        return None


class _Some:
    """Some of the photos of a source."""

    def __init__(self, source: Any, places: Sequence[int]) -> None:
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.places)

    def name(self, place: int) -> str:
        return self.source.name(self.places[place])

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.source[self.places[place]]


if __name__ == "__main__":
    run_main(main)
