"""Stage 2: a causal language model, which need not be trained, reads the queries in front of its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from prismer_jax import registry
from prismer_jax.models.blip2.base import Blip2Stage2
from prismer_jax.models.decoder_only import Columns, DecoderOnly, behind
from prismer_jax.typing import Array, Float, typed

TOWERS = {
    "llama": "prismer_jax.towers.causal_lm:Llama",
    "opt": "prismer_jax.towers.opt:OPT",
    "t5": "prismer_jax.towers.t5:T5",  # which is not causal: see models.blip2.stage2_t5
}


def tower(name: str) -> type[nn.Module]:
    """Returns the class of a language model.

    Raises:
      UserError: it is no name of TOWERS.
    """
    return registry.imported("language.tower", name, TOWERS)


class Blip2CausalLM(Blip2Stage2, DecoderOnly):
    """The model of stage 2 with any causal language model of the project."""

    def setup(self) -> None:
        super().setup()
        fields = dict(self.language)
        language = tower(fields.pop("tower"))
        self.decoder = language(**fields, remat=self.remat, dtype=jnp.dtype(self.dtype), name="language")

    def columns(self, encoded: Array, batch: Mapping[str, Any]) -> Columns:
        """Returns the queries and the text behind them, each of which sees what is before it."""
        there = jnp.ones(encoded.shape[:2], bool)
        return behind(encoded, there, self.decoder.embed(batch["text"]), batch, mutual=False)

    @typed
    def predictions(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits *of* every token of `text`, of the first one too, which the last query gives."""
        hidden, _, _ = self.read(self.encode(batch, train), batch)
        return self.first_logits(hidden[:, -batch["text"].shape[1] - 1 : -1])
