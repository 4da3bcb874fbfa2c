"""Rows of several samples, so that no column is spent on padding; and the samples that fit no row, left out.

A source of rows is a source of samples and a plan: which samples are in which row. The plan follows from the samples'
tokens, tiles and photos, which a dry run finds: it writes the texts, and reads of photos the headers alone. So a row is
a function of its number, as any example is, and the loader has no state beside the step.

In a config, `pack=dict(length=4096, most=63)` in a data section makes rows of what its pp makes of each sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax import labels
from prismer_jax.datasets import bins, data_seen
from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.files import progress, storage
from prismer_jax.files.dropped import Dropped
from prismer_jax.pp.buckets import Neighbours
from prismer_jax.pp.image_size import image_size

Example = dict[str, Any]
VERSION = 2  # of what is kept
CHUNK = 64  # samples between two looks at the bar
SILENT = "no answer to learn from"

logger = logging.getLogger(__name__)


def rows(
    source: Any,
    chain: Any,
    *,
    length: int,
    most: int,
    photos: int | None = None,
    row_photos: int | None = None,
    how: Literal["filled", "reference", "single"] = "filled",
    window: int = 2048,
    buffer: int = 8,
    seed: int = 0,
    num_workers: int = 0,
) -> tuple[Rows, Any]:
    """Returns (a source of rows, the chain that takes them) for `input.train_batches`.

    What the chain draws is a function of the sample, not of the epoch: its tokens must be those of the plan.

    Args:
      source, chain: of samples; the chain ends with `text` (see prismer_jax.batch), and has `tiles` if it has photos.
      length: tokens of a row.
      most: tiles of a row.
      photos, row_photos: of a sample, and of a row.
      how: 'filled', rows that are as full as can be and whose samples do not see each other; 'reference', those of
        huggingface/nanoVLM: less full, a column of padding behind each sample, and each sees those before it; 'single',
        one sample a row: samples that do not fit are left out before training.
      window: of 'filled', see `bins.best_fit`.
      buffer: of 'reference', see `bins.reference`.
      seed: of the plan.
      num_workers: processes of the dry run; 0 for threads of this one.

    Raises:
      UserError: no sample can be used; the message says why.
    """
    choose("way to pack", how, ("filled", "reference", "single"))
    gap = int(how == "reference")
    sizes, dropped = sizes_of(source, chain, num_workers)
    limits = [length, most, np.inf if row_photos is None else row_photos]
    usable = _usable(sizes, [length - gap, most, min(limits[2], np.inf if photos is None else photos)], dropped)
    if not len(usable):
        raise UserError(f"None of {len(sizes)} samples can be used: {'; '.join(dropped.lines())}.")
    padded = sizes[usable] + [gap, 0, 0]
    if how == "filled":
        plan = bins.best_fit(padded, limits, window, seed)
    elif how == "reference":
        plan = bins.reference(padded, limits, buffer, seed)
    else:
        plan = [[number] for number in range(len(usable))]
    packed = Rows(
        source, chain, [usable[row] for row in plan], sizes, Layout(length, most, gap, how == "filled"), dropped
    )
    for line in dropped.lines():
        logger.warning("left out: %s.", line.strip().rstrip("."))
    logger.info("%d samples in %d rows, %.1f %% full.", len(usable), len(packed), 100 * packed.fullness)
    return packed, as_they_are


def check(data: Mapping[str, Mapping[str, Any]], model: Any, loss: Any) -> None:
    """Raises a UserError for rows whose texts or photos the model, or the loss, cannot tell apart.

    A model without a token of images has all that it reads of a row's tiles in front of its texts, each of which sees
    all of it. A model or a loss that takes the texts of a row for one says `segments = False`.
    """
    for name, part in data.items():
        several = "tiles" in part["pp"] and part.get("pack", {"how": "single"}).get("how") != "single"
        if several and getattr(model, "image_token", None) is None:
            raise UserError(
                f"config.data.{name}.pack: this model reads all photos of a row in front of its texts, and would mix "
                "them up: leave pack out, or set how='single'."
            )
        if "pack(" in part["pp"] and not (getattr(model, "segments", True) and getattr(loss, "segments", True)):
            raise UserError(
                f"config.data.{name}.pp: this model with this loss reads what pack(...) puts in a row as one text: "
                "use caption(...) or question(...), and tokenize(...) or seq2seq(...)."
            )


def as_they_are(example: Example, rng: np.random.Generator) -> Example:
    """Returns the chain of rows, which are whole already."""
    return example


@dataclasses.dataclass(frozen=True)
class Layout:
    """How samples stand in a row.

    Attributes:
      length, most: columns and tiles.
      gap: columns of padding behind each sample.
      apart: whether each is a `segment` of its own.
    """

    length: int
    most: int
    gap: int = 0
    apart: bool = True


class Rows:
    """Rows as examples: `len(rows)`, `rows[i]`.

    A sample that turns out to be bad when it is read is left out of its row, which says so (`_bad`).

    Attributes:
      fullness: the share of columns that are tokens of samples.
      dropped: the samples that are in no row, by reason.
    """

    def __init__(
        self, source: Any, chain: Any, plan: Sequence[np.ndarray], sizes: np.ndarray, layout: Layout, dropped: Dropped
    ) -> None:
        self._source, self._chain, self._layout, self.dropped = source, chain, layout, dropped
        self._members, self._ends = np.concatenate(plan), np.cumsum([0, *map(len, plan)])
        self._sizes = np.add.reduceat(sizes[self._members], self._ends[:-1])[:, [1, 0]]  # tiles and tokens of each row
        self.fullness = float(sizes[self._members, 0].sum() / (len(plan) * layout.length))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def fingerprint(self) -> str:
        """Returns a digest of the samples and of which are in which row; no photo is read for it."""
        digest = hashlib.sha256(data_seen.fingerprint(self._source).encode())
        for array in (self._members, self._ends):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()

    def order(self, order: Any, batch_size: int, seed: int) -> Any:
        """Returns an order in which rows of like sizes are neighbours; the given one for the reference's rows."""
        return order.__getitem__ if self._layout.gap else Neighbours(order, self._sizes, batch_size, seed)

    def members(self, index: int) -> np.ndarray:
        """Returns the numbers of a row's samples."""
        return self._members[self._ends[index] : self._ends[index + 1]]

    def __getitem__(self, index: int) -> Example:
        members, samples, bad = self.members(index).tolist(), [], []
        for number in members:
            try:
                # The numbers drawn are those of the dry run, `input.eval_example`'s.
                samples.append(self._chain(self._source[number], np.random.default_rng([0, number])))
            except BadSample as error:
                bad.append(error)
        if not samples:
            raise bad[0]
        row = join(samples, self._layout, self._chain.tokenizer.pad)
        return row | {"id": f"row {index}", "_bad": [str(error) for error in bad], "_samples": len(members)}


def join(samples: Sequence[Example], layout: Layout, pad: int) -> Example:
    """Returns one row of the texts and tiles of several samples.

    Args:
      samples: with `text`, `mask_input`, `mask_ar` and `mask_loss` [any length], and for photos `image` [m, h, w, 3]
        and `image_mask` [m], perhaps label maps [m, h, w, c]; the tables of their ids get an axis of tiles too.
      pad: the id of padding.

    Raises:
      BadSample: they do not fit; a photo has changed since it was measured.
    """
    length, most = layout.length, layout.most
    row: Example = {
        "text": np.full(length, pad, np.int32),
        "mask_input": np.zeros(length, bool),
        "mask_ar": np.ones(length, np.int32),
        "mask_loss": np.zeros(length, np.float32),
        "segment": np.zeros(length, np.int32),
    }
    end, tiles = 0, []
    for number, sample in enumerate(samples):
        real = sample["mask_input"]
        start, end = end, end + int(real.sum())
        if end + layout.gap > length:
            raise BadSample(
                f"example {sample.get('id', '?')} has more tokens than when it was measured.", "has changed"
            )
        for key in ("text", "mask_input", "mask_ar", "mask_loss"):
            row[key][start:end] = sample[key][real]
        if layout.apart:
            row["mask_loss"][start] = 0  # what stands before it is another's
            row["segment"][start:] = number
        end += layout.gap
        if "image" in sample:
            tiles.append(_tiles(sample))
    if tiles:
        count = sum(len(tile["image"]) for tile in tiles)
        if count > most:
            raise BadSample(f"a row has {count} tiles, more than when they were counted.", "has changed")
        for key, first in tiles[0].items():
            row[key] = np.full((most, *first.shape[1:]), _FILLS.get(key, 0), first.dtype)
            row[key][:count] = np.concatenate([tile[key] for tile in tiles])
        row["image_mask"] = np.arange(most) < count
    return row


_FILLS = {expert.key: expert.fill for expert in labels.EXPERTS.values()}


def _tiles(sample: Example) -> Example:
    """Returns what a sample has of each of its tiles: pixels, label maps, and the tables that go with them."""
    if "image_mask" not in sample:
        raise UserError("Rows are packed of photos in tiles: put tiles(...) into pp.")
    there = sample["image_mask"]
    tables = {key: sample[key] for key in (labels.CLASSES_KEY, labels.WORDS_KEY) if key in sample}
    maps = {key: sample[key][there] for key in ("image", *_FILLS) if key in sample}
    return maps | {key: np.repeat(table[None], there.sum(), axis=0) for key, table in tables.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The dry run
# ---------------------------------------------------------------------------------------------------------------------


class Measured:
    """A chain that makes of a sample its `size` alone: tokens, tiles, photos.

    Photos become pictures of the same size that take no memory, from their headers; ops with a `dry` form run in that.
    Label maps are read where an op `reads_labels` to make texts of them.
    """

    def __init__(self, chain: Any) -> None:
        self.chain = chain
        self._reads_labels = any(getattr(op, "reads_labels", False) for op in chain.ops)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        example = self.planned(example, rng)
        if not example["mask_loss"].any():
            raise BadSample(f"example {example.get('id', '?')} has no answer.", SILENT)
        size = example["mask_input"].sum(), np.sum(example.get("image_mask", 0)), len(example.get("grids") or ())
        return {"size": np.array(size, np.int32)}

    def planned(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns what the chain makes of a sample, but for its tiles."""
        every = self._reads_labels
        example = {key: value for key, value in example.items() if every or not key.startswith("labels/")}
        if (photos := example.get("image")) is not None:
            name = f"a photo of example {example.get('id', '?')}"
            example["image"] = (
                [_blank(photo, name) for photo in photos] if isinstance(photos, list) else _blank(photos, name)
            )
        for op in self.chain.ops:
            example = getattr(op, "dry", op)(example, rng)
        return example


def _blank(photo: Any, name: str) -> np.ndarray:
    if isinstance(photo, np.ndarray):
        return photo
    size = image_size(photo, where=photo if isinstance(photo, str) else name)
    return np.broadcast_to(np.uint8(0), (*size, 3))


def sizes_of(source: Any, chain: Any, num_workers: int = 0) -> tuple[np.ndarray, Dropped]:
    """Returns int32 [n, 3], tokens, tiles and photos of each sample, -1 of bad ones, and why these are bad.

    They are kept below `storage.data_folder()` where the source says what it is `made_of`, or has a fingerprint.
    """
    path = _place(source, chain)
    with contextlib.suppress(OSError, ValueError, KeyError):  # not there yet, or cut
        if path is not None:
            with np.load(path) as stored:
                return stored["sizes"], Dropped.from_json(json.loads(str(stored["dropped"])))
    from prismer_jax import input  # Grain imports jax, which workers that read rows have no use for

    sizes, dropped, done = np.full((len(source), 3), -1, np.int32), Dropped(), 0
    batches = input.eval_batches(source, Measured(chain), batch_size=CHUNK, num_workers=num_workers)
    with progress.bar("measuring texts and photos", len(source), unit="samples") as advance:
        for batch in batches:
            count = min(CHUNK, len(source) - done)
            good = batch["_mask"][:count]
            sizes[done : done + count][good] = batch["size"][:count][good]
            for meta in batch["meta"][:count]:
                if "error" in meta:
                    dropped.add(meta["reason"], meta["error"])
            done += count
            advance(count)
    if path is not None:
        file = io.BytesIO()
        np.savez(file, sizes=sizes, dropped=json.dumps(dropped.to_json()))
        with contextlib.suppress(OSError):  # where it cannot be kept it is found each time
            os.makedirs(os.path.dirname(path), exist_ok=True)
            storage.write(path, file.getvalue())
    return sizes, dropped


def _place(source: Any, chain: Any) -> str | None:
    """Returns where the sizes are kept: under the hash of all that they depend on."""
    made_of = getattr(source, "made_of", None) or getattr(source, "fingerprint", None)
    if made_of is None:
        return None
    digest = hashlib.sha256(json.dumps([VERSION, made_of, len(source), chain.spec]).encode())
    for file in chain.tokenizer.files():
        digest.update(file.read_bytes())
    return str(storage.data_folder() / "sizes" / f"{digest.hexdigest()[:32]}.npz")


def _usable(sizes: np.ndarray, limits: Sequence[float], dropped: Dropped) -> np.ndarray:
    """Returns the numbers of the samples within the limits; counts the others."""
    left = sizes[:, 0] >= 0
    for column, (reason, limit) in enumerate(zip(("tokens", "tiles", "photos"), limits, strict=True)):
        over = np.flatnonzero(left & (sizes[:, column] > limit))
        if len(over):
            case = f"sample {over[0]} has {sizes[over[0], column]}, more than {limit}"
            dropped.add(f"too many {reason}", case, len(over))
            left[over] = False
    return np.flatnonzero(left)
