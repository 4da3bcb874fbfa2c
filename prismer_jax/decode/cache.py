"""What all decoding methods share: the first step after a prompt, and sequences that go on from other sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax.errors import UserError
from prismer_jax.typing import Array, Int

Cache = dict[str, Any]
Batch = Mapping[str, Any]
Prefill = Callable[[Any, Batch, int], tuple[Array, Cache]]
Extend = Callable[..., tuple[Array, Cache]]  # (cache, tokens[, seen])


def reorder(cache: Cache, parents: Int[Array, "b k"]) -> Cache:
    """Returns a cache whose sequence [b, k] goes on from sequence [b, parents[b, k]]; `shared` stays as it is."""

    def take(x: Array, axis: int) -> Array:
        index = jnp.expand_dims(parents, (*range(axis - 1), *range(axis + 1, x.ndim)))
        return jnp.take_along_axis(x, index, axis=axis, mode="promise_in_bounds")  # no pass over the cache for a check

    own = jax.tree.map(functools.partial(take, axis=2), cache["own"])
    return cache | {"own": own, "rows": jax.tree.map(functools.partial(take, axis=1), cache["rows"])}


def start(
    prefill: Prefill, encoded: Any, batch: Batch, count: int, max_new: int, pad: int
) -> tuple[Array, Array, Cache]:
    """Returns tokens [B,count,max_new] (pads), the first logits [B,count,V] and a cache for `count` sequences."""
    if max_new < 1:
        raise UserError(f"max_new={max_new} leaves no token to generate; max_len counts the prompt too: raise it.")
    logits, cache = prefill(encoded, batch, max_new)
    shape = (len(logits), count)
    logits = jnp.broadcast_to(logits, (*shape, logits.shape[-1]))
    tokens = jnp.full((*shape, max_new), pad, jnp.int32)
    return tokens, logits, reorder(cache, jnp.zeros(shape, jnp.int32))


def log_probs_of(logits: Array, column: Array | int, min_new: int, eos: int) -> tuple[Array, Array]:
    """Returns float32 log-probabilities, and the same with the end forbidden in columns before min_new.

    The second is *not* normalised again: that is what the reference sums up in its beams.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    ban = (jnp.arange(logits.shape[-1]) == eos) & (column < min_new)
    return log_probs, jnp.where(ban, -jnp.inf, log_probs)


def row_keys(rng: Array, numbers: Array) -> Array:
    """Returns a key for each row of a batch, fold_in(rng, its number), however large the batch is."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, numbers)
