"""Stage 1: the Q-Former compares images with texts, matches them, and writes texts, without a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax.models.blip2.base import Blip2Base
from prismer_jax.models.vlm import ordinals, text_mask
from prismer_jax.towers import layers
from prismer_jax.towers.qformer import for_all, selected
from prismer_jax.typing import Array, Bool, Float, Int, typed

FAR = -10_000.0  # in the place of similarities that no negative is drawn from, or that are of rows that fill a batch up


class Negatives(NamedTuple):
    """What is matched as a negative.

    Attributes:
      image: int32 [b], the image that stands for each text's own.
      text: int32 [b], the text that stands for each image's own.
    """

    image: Array
    text: Array


class Blip2Stage1(Blip2Base):
    """The model of stage 1. Its text is `[CLS] words [SEP]`; what it writes stands behind `[DEC]`, the last word.

    Source: salesforce/LAVIS, models/blip2_models/blip2_qformer.py.
    """

    def setup(self) -> None:
        super().setup()
        dtype, init = jnp.dtype(self.dtype), layers.torch_uniform(self.qformer["width"])
        self.project_image, self.project_text = (layers.Dense(self.embed_dim, dtype=dtype) for _ in range(2))
        self.match_head = layers.Dense(2, dtype, init)
        self.temperature = self.param("temperature", nn.initializers.constant(0.07), ())

    @property
    def vocab_size(self) -> int:
        return self.qformer["vocab_size"]

    @property
    def begin(self) -> int:
        """Returns the id of [DEC]."""
        return self.vocab_size - 1

    # ------------------------------------------------------------------------------------------- writing texts
    def encode(self, batch: Mapping[str, Any], train: bool = False) -> dict[str, Any]:
        """Returns the keys and values of the queries, leaves [b groups q h d]."""
        _, keys = self.queried(self.image_tokens(batch, train))
        return jax.tree.map(lambda x: x.swapaxes(0, 1), for_all(selected(keys, "query")))

    @typed
    def __call__(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits of the next token at every position of `text`."""
        hidden, _ = self._write(_keys_first(self.encode(batch, train)), batch)
        if self.is_initializing():  # what writing alone does not read has parameters, too
            self.compared(batch)
        return self.queries.logits(hidden)

    @typed
    def prefill(
        self, encoded: dict[str, Any], batch: Mapping[str, Any], room: int
    ) -> tuple[Float[Array, "b 1 v"], dict[str, Any]]:
        """Reads the prompt. The cache's `shared` has the keys of the queries and of the prompt."""
        keys = _keys_first(encoded)
        hidden, new = self._write(keys, batch)
        texts = selected(new, "text")
        own = layers.unfilled(texts, room)
        prompt = {name: {"prompt": part["text"]} for name, part in for_all(texts).items()}
        shared = {"past": {name: keys[name] | prompt[name] for name in keys}, "mask": batch["mask_input"]}
        rows = {"count": batch["mask_input"].sum(-1, keepdims=True, dtype=jnp.int32)}
        cache = {"shared": shared, "own": own, "rows": rows, "index": jnp.zeros((), jnp.int32)}
        return self.queries.logits(hidden[:, -1:]), cache

    @typed
    def extend(
        self, cache: dict[str, Any], tokens: Int[Array, "b k t"], seen: Bool[Array, "b k t t"] | None = None
    ) -> tuple[Float[Array, "b k t v"], dict[str, Any]]:
        """Appends tokens to every sequence. Returns the logits after each of them and the cache with their columns.

        `seen` makes them a tree, see models.vlm.
        """
        index, count, length = cache["index"], cache["rows"]["count"], tokens.shape[2]
        (first, *_), own = jax.tree.leaves(cache["own"]), cache["own"]
        past = {name: part | {"own": own[name]["text"]} for name, part in cache["shared"]["past"].items()}
        new = jnp.tri(length, dtype=bool) if seen is None else seen
        masks = {"text": new, "prompt": cache["shared"]["mask"][:, None, None]}
        masks["own"] = (jnp.arange(first.shape[3]) < index)[None]
        x = self.queries.embedded_text(tokens, count[..., None] + new.sum(-1, dtype=jnp.int32) - 1)
        parts, new = self.queries({"text": x}, masks=masks, past=past)
        if seen is not None:
            return self.queries.logits(parts["text"]), cache
        own, rows = layers.appended(own, selected(new, "text"), index), {"count": count + length}
        return self.queries.logits(parts["text"]), {**cache, "own": own, "rows": rows, "index": index + length}

    def _write(self, past: dict[str, Any], batch: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Returns the states [b t d] of a text that sees the queries and what is before it, and its keys."""
        text = jnp.where(ordinals(batch) == 1, self.begin, batch["text"])
        x = self.queries.embedded_text(text[:, None], _positions(batch))
        parts, keys = self.queries({"text": x}, masks={"text": text_mask(batch)[:, None]}, past=past)
        return parts["text"][:, 0], keys

    # ------------------------------------------------------------------------- comparing and matching with images
    @typed
    def image_embeddings(self, hidden: Float[Array, "b q d"]) -> Float[Array, "b q e"]:
        """Returns the queries' states as unit vectors to be compared with texts."""
        return _unit(self.project_image(hidden))

    def read_text(self, batch: Mapping[str, Any]) -> tuple[Float[Array, "b t d"], Float[Array, "b t e"]]:
        """Returns the states of texts that are read alone, and these as unit vectors; the first token's is a text's."""
        x = self.queries.embedded_text(batch["text"][:, None], _positions(batch))
        mask = batch["mask_input"][:, None, None]
        hidden = self.queries({"text": x}, masks={"text": mask})[0]["text"][:, 0]
        return hidden, _unit(self.project_text(hidden))

    @typed
    def matched(
        self,
        text: Int[Array, "b k t"],
        real: Bool[Array, "b k t"],
        image: Float[Array, "b n c"] | None = None,
        keys: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, "b k q d"], Float[Array, "b k q 2"]]:
        """Returns the states of queries that see an image and one of k texts with it, and their scores of no and yes.

        Args:
          image: the images' tokens, or `keys` of an earlier pass over them, which all k texts share.
        """
        rows, count = text.shape[:2]
        query = self.queries.embedded_queries(rows)
        query = jnp.broadcast_to(query, (rows, count, *query.shape[2:]))
        positions = jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)
        parts = {"query": query, "text": self.queries.embedded_text(text, positions)}
        past = selected(keys, "image") if keys else None
        hidden = self.queries(parts, image, {"text": real[..., None, :]}, past)[0]["query"]
        scores = self.match_head(hidden).astype(jnp.float32)
        self.sow("intermediates", "match", scores)
        return hidden, scores

    def compared(
        self,
        batch: Mapping[str, Any],
        train: bool = False,
        negatives: Negatives | None = None,
        gather: str = "through",
        clamp: bool = False,
    ) -> dict[str, Array]:
        """Returns all that the losses of stage 1 read, of the whole batch on all devices.

        A row that fills a last batch up (`_mask`) is nobody's negative.

        Args:
          negatives: which they are; drawn by default, likelier the more alike they are.
          gather: 'through' differentiates both sides of a similarity; 'reference' that of its own row alone, as LAVIS
            does on several devices.
          clamp: keep the temperature in 0.001 to 0.5.

        Returns:
          'i2t', 't2i' [b b]: similarities / temperature. 'there' bool [b]: no filling. 'same' bool [b b]: texts of the
          image of the row, by `image_id` where a batch has it. 'match' [3 b 2]: scores of each text with its image,
          with another image, of each image with another text; 'counts' float32 [b], 0 where there is no other.
          'logits' [b t v]: of the text that is written.
        """
        tokens = self.image_tokens(batch, train)
        text, real = jnp.asarray(batch["text"]), jnp.asarray(batch["mask_input"])
        hidden, keys = self.queried(tokens)
        images, texts = self.image_embeddings(hidden), self.read_text(batch)[1][:, 0]
        hold = jax.lax.stop_gradient if gather == "reference" else lambda x: x
        temperature = jnp.clip(self.temperature, 0.001, 0.5) if clamp else self.temperature
        i2t = jnp.einsum("iqe,te->iqt", images, hold(texts)).max(1).astype(jnp.float32) / temperature
        t2i = jnp.einsum("te,iqe->tqi", texts, hold(images)).max(1).astype(jnp.float32) / temperature
        same = jnp.eye(len(text), dtype=bool)
        if "image_id" in batch:
            same = batch["image_id"][:, None] == batch["image_id"]
        there = batch.get("_mask", jnp.ones(len(text), bool))
        same, others = same & there, ~same & there
        i2t, t2i = (jnp.where(there, x, FAR) for x in (i2t, t2i))
        if negatives is None:
            negatives = self.drawn(i2t, t2i, others)
        pair = jnp.stack([text, text[negatives.text]], axis=1), jnp.stack([real, real[negatives.text]], axis=1)
        own = self.matched(*pair, keys=keys)[1].mean(2)
        other = self.matched(text[:, None], real[:, None], tokens[negatives.image])[1].mean(2)
        hidden, _ = self._write(for_all(selected(keys, "query")), batch)
        match = jnp.stack([own[:, 0], other[:, 0], own[:, 1]])
        counts = others.any(1).astype(jnp.float32)
        logits = self.queries.logits(hidden)
        return dict(i2t=i2t, t2i=t2i, there=there, same=same, match=match, counts=counts, logits=logits)

    def drawn(self, i2t: Array, t2i: Array, others: Array) -> Negatives:
        """Draws what is alike the more often; takes what is the most alike where there is no random stream."""
        weights = [jax.lax.stop_gradient(jnp.where(others, x, FAR)) for x in (t2i, i2t)]
        if not self.has_rng("negatives"):
            return Negatives(weights[0].argmax(-1), weights[1].argmax(-1))
        first, second = jax.random.split(self.make_rng("negatives"))
        return Negatives(jax.random.categorical(first, weights[0]), jax.random.categorical(second, weights[1]))


def _positions(batch: Mapping[str, Any]) -> Array:
    return jnp.maximum(ordinals(batch) - 1, 0)[:, None]


def _keys_first(encoded: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda x: x.swapaxes(0, 1), encoded)


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
