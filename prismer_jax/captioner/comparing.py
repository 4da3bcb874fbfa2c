"""Photos and texts compared by a model that was trained to: what Captioner.features and .match return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prismer_jax import input, pp
from prismer_jax.batch import inputs
from prismer_jax.decode import matching
from prismer_jax.errors import UserError

TEXTS_AT_ONCE = 64  # at most, that one photo is matched with, or that are embedded together

Note = Callable[[Any, Mapping[int, Mapping[str, Any]]], None]


class Read(NamedTuple):
    """What was read of a photo.

    Attributes:
      place: in its source.
      image: its id.
      vectors: unit vectors [q e].
      scores: of 'no' and 'yes' [k 2], of k texts that it was read with.
      states: of the queries [k q d] that saw the photo and a text.
    """

    place: int
    image: str
    vectors: np.ndarray
    scores: np.ndarray
    states: np.ndarray


class Comparer:
    """Compares photos of sources with texts.

    Args:
      model, variables, tokenizer: of stage 1 of BLIP-2, or like it (see decode.matching).
      how: the task 'match' of a checkpoint: `pp` of photos; of texts, `style` and `max_tokens`.
      note: is told, as (source, {place: meta}), of the photos of each batch, bad ones among them.

    Raises:
      UserError: the model compares nothing.
    """

    def __init__(self, model: Any, variables: Any, tokenizer: Any, how: Mapping[str, Any], note: Note) -> None:
        matching.check(model)
        self.model, self.variables, self.tokenizer, self.how, self.note = model, variables, tokenizer, how, note

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns texts as unit vectors [texts e]; raises UserError if there is none."""
        if not len(texts):
            raise UserError("There is no text to compare photos with: give one or more.")
        ids, real = self._tokens(texts)
        vectors, step = [], at_once(len(texts))
        for start in range(0, len(texts), step):
            some = np.arange(start, start + step).clip(max=len(texts) - 1)  # one shape for all
            vectors.append(jax.device_get(matching.read_texts(self.model, self.variables, ids[some], real[some])))
        return np.concatenate(vectors)[: len(texts)]

    def read(
        self, source: Any, batch_size: int, texts: Sequence[str] = (), wanted: Sequence[Sequence[int]] = ()
    ) -> Iterator[Read]:
        """Yields what is read of each photo that can be used, in the order of the source.

        `wanted` has the numbers of the texts that each photo is read with, if any is; it is encoded once for all.
        """
        ids, real = self._tokens(texts) if texts else (None, None)
        step = at_once(max(map(len, wanted), default=0))
        for rows, seen in self._batches(source, batch_size):
            vectors = jax.device_get(seen["embeddings"])
            asked = [list(wanted[place]) if texts else [] for _, place, _ in rows]
            parts = []
            for start in range(0, max(map(len, asked), default=0), step):
                chosen = np.zeros((batch_size, step), int)
                for (row, _, _), numbers in zip(rows, asked, strict=True):
                    some = numbers[start : start + step]
                    chosen[row, : len(some)] = some
                both = matching.match(self.model, self.variables, seen["keys"], ids[chosen], real[chosen])
                parts.append(jax.device_get(both))
            for (row, place, image), numbers in zip(rows, asked, strict=True):
                count = range(0, len(numbers), step)
                states, scores = (
                    np.concatenate([part[which][row] for part in parts[: len(count)]])[: len(numbers)]
                    if numbers
                    else np.zeros(0)
                    for which in range(2)
                )
                yield Read(place, image, vectors[row], scores, states)

    def features(self, source: Any, texts: Sequence[str] | None, batch_size: int) -> dict[str, Any]:
        """Returns what Captioner.features does, of a source of photos or None."""
        found: dict[str, Any] = {} if texts is None else {"text": self.texts(texts)}
        if source is None:
            return found
        if texts is not None and len(texts) != len(source):
            raise UserError(f"{len(source)} photos and {len(texts)} texts: features are of one text a photo.")
        rows = list(self.read(source, batch_size, texts or (), [[place] for place in range(len(source))]))
        found |= {"images": [row.image for row in rows], "image": np.stack([row.vectors for row in rows])}
        return found if texts is None else found | {"multimodal": np.stack([row.states[0] for row in rows])}

    def match(self, source: Any, texts: Sequence[str], batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields what Captioner.match returns, as it is found."""
        vectors = self.texts(texts)
        for row in self.read(source, batch_size, texts, [range(len(texts))] * len(source)):
            yield {"image": row.image, "texts": list(texts), **compared(row, vectors)}

    def _batches(self, source: Any, batch_size: int) -> Iterator[tuple[list[tuple[int, int, str]], dict[str, Any]]]:
        """Yields [(row, place, id) of each usable photo] of a batch, and what was read of its images.

        A last batch is filled up, so that batches of all sources are compiled once.
        """
        chain = pp.build(self.how["pp"], tokenizer=self.tokenizer)
        for number, batch in enumerate(input.eval_batches(source, chain, batch_size=batch_size)):
            meta, first = batch["meta"], number * batch_size
            there = {row: first + row for row in range(min(batch_size, len(source) - first))}
            self.note(source, {place: meta[row] for row, place in there.items()})
            arrays = inputs({key: value for key, value in batch.items() if isinstance(value, np.ndarray)})
            rows = [(row, place, meta[row]["id"]) for row, place in there.items() if batch["_mask"][row]]
            if rows:
                yield rows, matching.read_images(self.model, self.variables, arrays)

    def _tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return matching.tokens(self.tokenizer, texts, self.how.get("max_tokens", 32), self.how.get("style", "blip"))


def at_once(count: int) -> int:
    """Returns how many of `count` texts are read together: powers of 2, so that few shapes are compiled."""
    return min(TEXTS_AT_ONCE, 1 << max(count - 1, 0).bit_length())


def compared(row: Read, texts: np.ndarray) -> dict[str, list[float]]:
    """Returns the numbers of Captioner.match, of a photo and the unit vectors [k e] of the texts it was read with."""
    likeness = (texts @ row.vectors.T).max(1)
    probabilities = 1 / (1 + np.exp(row.scores[:, 0] - row.scores[:, 1]))
    sums = likeness + row.scores[:, 1]
    return {"itc": likeness.tolist(), "itm": probabilities.tolist(), "score": sums.tolist()}
