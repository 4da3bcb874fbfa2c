"""Retrieval among all photos and captions of a data set, both ways, the best of each ranked again."""

from __future__ import annotations

import base64
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from prismer_jax.decode import matching
from prismer_jax.errors import UserError
from prismer_jax.evaluators.common import Batch, Evaluator, Journal, Record, gather, local_rows
from prismer_jax.scores import retrieval

IMAGES_AT_ONCE = 64  # of which likenesses are computed together

logger = logging.getLogger(__name__)


class RetrievalEvaluator(Evaluator):
    """Recall in percent at 1, 5 and 10: texts by photo (`i2t_r1` ...), photos by text (`t2i_r1` ...); mean `r_mean`.

    As LAVIS does it: all are compared by the likeness of their vectors; the k_test best of each are scored by the model
    that reads both, and ranked by the sum of that score and the likeness. Here, photo by photo, what either way needs
    is scored at once, so that an image is encoded once and its keys and values are made once. `predictions` are the
    texts that were found first.

    Args:
      k_test: how many are ranked again; 0 for none.
      style, max_tokens: how texts are cleaned and cut; 35 tokens is LAVIS's limit here.
      texts_at_once: that a photo is matched with in one call.
      options: those of `Evaluator`. The pp needs to make an image alone.
    """

    main_score, text_key = "i2t_r1", "caption"
    score_names = (*(f"{way}_r{at}" for way in ("i2t", "t2i") for at in retrieval.AT), "r_mean")

    def __init__(
        self,
        *,
        k_test: int = 128,
        style: str = "blip",
        max_tokens: int = 35,
        texts_at_once: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        matching.check(self.model)
        self.k_test, self.style, self.max_tokens, self.texts_at_once = k_test, style, max_tokens, texts_at_once
        self._ranks: dict[str, dict[int, float]] = {}  # by the place of a photo with captions, or of a text

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        vectors = local_rows(matching.read_images(self.model, variables, self.put(batch))["embeddings"])
        return [{"_vectors": base64.b64encode(row.astype(np.float32)).decode()} for row in vectors]

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        captions = [text for text in example.get("captions") or () if isinstance(text, str)]
        return {**super().about(example, index), "references": captions}

    def walk(self, variables: Any, journal: Journal | None = None) -> list[Record]:
        """Embeds all photos and texts, then ranks again what is likely, which takes longer; the journal keeps that."""
        earlier = gather([] if journal is None else journal.read())
        records = super().walk(variables)
        photos = [np.frombuffer(base64.b64decode(record.pop("_vectors")), np.float32) for record in records]
        texts = [text for record in records for text in record["references"]]
        if not texts:
            raise UserError("No sample has a caption to be found by. Give a list that has them.")
        owners = np.repeat(np.arange(len(records)), [len(record["references"]) for record in records])
        ids, real = matching.tokens(self.tokenizer, texts, self.max_tokens, self.style)
        vectors = self._embed(variables, ids, real)
        likeness = self._likeness(np.stack(photos).reshape(len(records), -1, vectors.shape[1]), vectors)
        k = self.k_test or max(likeness.shape)
        if self.k_test > min(likeness.shape):
            logger.warning("k_test=%d, but %d photos and %d texts: all are ranked again.", k, *likeness.shape)
        i2t, t2i = ([retrieval.best(row, k) for row in matrix] for matrix in (likeness, likeness.T))
        texts_to_read = [set(row.tolist()) for row in i2t]
        for text, row in enumerate(t2i):
            for photo in row.tolist():
                texts_to_read[photo].add(text)
        scores = self._matched(variables, records, texts_to_read, ids, real, earlier, journal) if self.k_test else None

        def final(photos: Any, texts: Any) -> np.ndarray:
            sums = likeness[photos, texts]
            pairs = np.broadcast(photos, texts)
            return sums if scores is None else sums + np.array([scores[photo][text] for photo, text in pairs])

        own = [set(np.flatnonzero(owners == photo).tolist()) for photo in range(len(records))]
        self._ranks = {
            "i2t": {i: retrieval.rank(final(i, row), row, own[i]) for i, row in enumerate(i2t) if own[i]},
            "t2i": {i: retrieval.rank(final(row, i), row, {owners[i]}) for i, row in enumerate(t2i)},
        }
        self.predictions = []
        for photo, record in enumerate(records):
            record["prediction"] = texts[i2t[photo][retrieval.best(final(photo, i2t[photo]), 1)[0]]]
            self.predictions.append({"image_id": record["id"], "caption": record["prediction"]})
            if own[photo]:
                record["scores"] = self._recalls({"i2t": {photo}, "t2i": own[photo]})
        return records

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        values = self._recalls(self._ranks)
        yield from values.items()
        yield "r_mean", sum(values.values()) / len(values)

    def _recalls(self, ways: Mapping[str, Collection[int]]) -> dict[str, float]:
        """Returns the recalls either way, of these photos and these texts."""
        ranks = {way: [self._ranks[way][place] for place in places] for way, places in ways.items()}
        return {name: value for way in ranks for name, value in retrieval.recalls(way, ranks[way])}

    def _embed(self, variables: Any, ids: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Returns the vectors of all texts; the processes share each batch of them."""
        size = self.batch_size
        placed_vectors = []  # (place, vector) of this process's texts, which others may have as well
        for start in range(0, len(ids), size):
            mine = [start + row for row in self._rows if start + row < len(ids)]
            places = [min(start + row, len(ids) - 1) for row in self._rows]
            batch = self.put({"text": ids[places], "mask_input": real[places]})
            vectors = local_rows(matching.read_texts(self.model, variables, batch["text"], batch["mask_input"]))
            placed_vectors += [(place, vector.tolist()) for place, vector in zip(mine, vectors, strict=False)]
        by_place = dict(gather(placed_vectors))
        return np.array([by_place[place] for place in range(len(ids))], np.float32)

    def _likeness(self, photos: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Returns float32 [photos, texts]."""
        parts = [photos[start : start + IMAGES_AT_ONCE] for start in range(0, len(photos), IMAGES_AT_ONCE)]
        return np.concatenate([jax.device_get(matching.likeness(part, texts)) for part in parts])

    def _matched(
        self,
        variables: Any,
        records: list[Record],
        texts_to_read: list[set[int]],
        ids: np.ndarray,
        real: np.ndarray,
        earlier: list[Record],
        journal: Journal | None,
    ) -> list[dict[int, float]]:
        """Returns {text: score} of each photo, of all texts that are wanted of it."""
        size, place_of = self.batch_size, {record["index"]: place for place, record in enumerate(records)}
        done = {entry["photo"]: dict(zip(entry["texts"], entry["scores"], strict=True)) for entry in earlier}
        todo = {
            record["index"]: sorted(texts)
            for record, texts in zip(records, texts_to_read, strict=True)
            if not done.get(record["index"], {}).keys() >= texts
        }
        numbers, new = sorted({index // size for index in todo}), []
        with self._progress(", ranked again", len(records), len(records) - len(todo), "photos") as advance:
            for number, batch in zip(numbers, self._load(numbers), strict=True):
                keys = matching.read_images(self.model, variables, self.put(batch))["keys"]
                most = max(len(todo.get(index, ())) for index in range(number * size, (number + 1) * size))
                mine = {row: todo.get(number * size + row, []) for row in self._rows}
                scores: list[np.ndarray] = []
                for start in range(0, most, self.texts_at_once):
                    asked = [
                        (row[start : start + self.texts_at_once] + [0] * self.texts_at_once)[: self.texts_at_once]
                        for row in mine.values()
                    ]
                    batch = self.put({"text": ids[asked], "mask_input": real[asked]})
                    _, pairs = matching.match(self.model, variables, keys, batch["text"], batch["mask_input"])
                    scores.append(local_rows(pairs)[..., 1])
                scored = [
                    {"photo": number * size + row, "texts": texts, "scores": line[: len(texts)].tolist()}
                    for (row, texts), line in zip(mine.items(), np.concatenate(scores, axis=1), strict=True)
                    if texts
                ]
                if journal is not None:
                    journal.write(scored)
                new += scored
                advance(sum(index // size == number for index in todo))
        for entry in gather(new):
            done[entry["photo"]] = dict(zip(entry["texts"], entry["scores"], strict=True))
        return [done[index] for index in place_of]
