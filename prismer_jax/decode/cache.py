"""What all decoding methods share: the first step after a prompt, and sequences that go on from other sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax.errors import UserError
from prismer_jax.typing import Array, Int

EOS, PAD = 2, 1  # of RoBERTa's vocabulary, which every tokenizer of this project follows
Cache = dict[str, Any]
Prefill = Callable[..., tuple[Array, Cache]]
Extend = Callable[..., tuple[Array, Cache]]


def continue_rows(cache: Cache, parents: Int[Array, "b k"]) -> Cache:
    """Returns a cache whose sequence [b, k] goes on from sequence [b, parents[b, k]]; `shared` stays as it is."""

    def take(x: Array, axis: int) -> Array:
        index = jnp.expand_dims(parents, (*range(axis - 1), *range(axis + 1, x.ndim)))
        return jnp.take_along_axis(x, index, axis=axis, mode="promise_in_bounds")  # no pass over the cache for a check

    layers = jax.tree.map(functools.partial(take, axis=2), cache["layers"])
    return cache | {"layers": layers, "rows": jax.tree.map(functools.partial(take, axis=1), cache["rows"])}


def start(
    prefill: Prefill, encoded: Any, prompt: Array, count: int, max_len: int, pad: int
) -> tuple[Array, Array, Cache]:
    """Returns tokens [B,count,max_len], the first logits [B,count,V] and the prompt's cache for `count` sequences."""
    batch, width = prompt.shape
    if width >= max_len:
        raise UserError(f"max_len={max_len} counts the prompt, which already has {width} columns: raise max_len.")
    logits, cache = prefill(encoded, prompt, max_len)
    tokens = jnp.full((batch, count, max_len), pad, jnp.int32).at[:, :, :width].set(prompt[:, None])
    logits = jnp.broadcast_to(logits, (batch, count, logits.shape[-1]))
    return tokens, logits, continue_rows(cache, jnp.zeros((batch, count), jnp.int32))


def log_probs_of(logits: Array, column: Array | int, min_len: int, eos: int) -> tuple[Array, Array]:
    """Returns float32 log-probabilities, and the same with the end forbidden in columns before min_len.

    The second is *not* normalised again: that is what the reference sums up in its beams.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    ban = (jnp.arange(logits.shape[-1]) == eos) & (column < min_len)
    return log_probs, jnp.where(ban, -jnp.inf, log_probs)
