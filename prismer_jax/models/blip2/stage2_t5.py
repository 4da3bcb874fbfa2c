"""Stage 2 with T5: its encoder reads the queries and a prompt, its decoder writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from prismer_jax.models.blip2.base import Blip2Stage2
from prismer_jax.models.vlm import ordinals
from prismer_jax.towers.t5 import T5
from prismer_jax.typing import Array, Bool, Float, Int, typed


class Blip2T5(Blip2Stage2):
    """The model of stage 2 with T5 or FlanT5.

    Of a text, the tokens with `mask_ar` 0 are the prompt, which the encoder reads, and the others what the decoder
    writes; each part ends with the tokenizer's `eos` (see the op `seq2seq`).

    Attributes:
      start: what stands in front of a text that is written: T5's padding.
    """

    start: int = 0
    segments: ClassVar[bool] = False  # prompts of a row would be one: see datasets.packing.check

    def setup(self) -> None:
        super().setup()
        fields = {k: v for k, v in self.language.items() if k != "tower"}
        self.decoder = T5(**fields, remat=self.remat, dtype=jnp.dtype(self.dtype), name="language")

    @property
    def vocab_size(self) -> int:
        return self.language["vocab_size"]

    @typed
    def __call__(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits of the next token at every position of `text`; in a prompt, of the first written."""
        hidden, written = self._states(batch, train)
        column = jnp.where(written, jnp.arange(1, hidden.shape[1]), 0)
        return self.decoder.logits(jnp.take_along_axis(hidden, column[..., None], axis=1))

    @typed
    def predictions(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits *of* every token of `text` that is written."""
        hidden, written = self._states(batch, train)
        before = jnp.pad(written, ((0, 0), (1, 0)))[:, :-1]  # the first written column follows the start
        column = jnp.where(before, jnp.arange(hidden.shape[1] - 1), 0)
        hidden = jnp.take_along_axis(hidden, column[..., None], axis=1)
        self.sow("intermediates", "written", hidden)
        return self.decoder.logits(hidden)

    def _states(self, batch: Mapping[str, Any], train: bool) -> tuple[Array, Array]:
        """Returns the decoder's states [b 1+t d] of the start and every column, and which of these are written."""
        written = batch["mask_input"] & (batch["mask_ar"] > 0)
        encoded, real = self._read(self.encode(batch, train), batch, batch["mask_input"] & ~written)
        ids = jnp.pad(batch["text"], ((0, 0), (1, 0)), constant_values=self.start)
        there = jnp.pad(written, ((0, 0), (1, 0)), constant_values=True)
        positions = jnp.cumsum(there, axis=1, dtype=jnp.int32) - 1
        masks = {
            "encoded": real[:, None, None],
            "new": (jnp.tri(ids.shape[1], dtype=bool) & there[:, None, :])[:, None],
        }
        hidden, _ = self.decoder.decode(ids[:, None], masks, {"new": positions[:, None]}, encoded)
        return hidden[:, 0], written

    def _read(self, queries: Array, batch: Mapping[str, Any], prompt: Array) -> tuple[Array, Array]:
        """Returns the encoder's states [b q+t d] of the queries and a prompt, and which of them there are."""
        count = queries.shape[1]
        x = jnp.concatenate([queries, self.decoder.embed(batch["text"])], axis=1)
        real = jnp.pad(prompt, ((0, 0), (count, 0)), constant_values=True)
        positions = jnp.pad(count - 1 + ordinals(batch), ((0, 0), (count, 0)))
        positions = positions.at[:, :count].set(jnp.arange(count))
        return self.decoder.encode(x, real, positions), real

    @typed
    def prefill(
        self, encoded: Float[Array, "b q d"], batch: Mapping[str, Any], room: int
    ) -> tuple[Float[Array, "b 1 v"], dict[str, Any]]:
        """Reads the prompt, which all of `text` is. The cache's `shared` has what the decoder reads of the encoder."""
        states, real = self._read(encoded, batch, batch["mask_input"])
        return self.decoder.prefill(states, real, self.start, room)

    @typed
    def extend(
        self, cache: dict[str, Any], tokens: Int[Array, "b k t"], seen: Bool[Array, "b k t t"] | None = None
    ) -> tuple[Float[Array, "b k t v"], dict[str, Any]]:
        """Appends tokens to every sequence. Returns the logits after each of them and the cache with their columns.

        `seen` makes them a tree, see models.vlm.
        """
        return self.decoder.extend(cache, tokens, seen)
