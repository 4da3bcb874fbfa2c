"""Gradients accumulated over parts of a batch: config.accumulate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax.errors import UserError

Gradient = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]


def in_parts(gradient_of: Gradient, parts: int) -> Gradient:
    """Returns a function for gradients that sees the batch in `parts` equal parts, one after the other.

    With a loss that is a sum over examples, gradient and sums are those of the whole batch, at the memory of one part.
    What is *not* the same is BatchNorm in training: each part is normalised with its own statistics, and the running
    statistics are updated `parts` times, as they would be over so many smaller batches.

    Args:
      gradient_of: (params, stats, batch, rng) -> (gradient, stats, sums). `stats` is threaded from part to part
        (running statistics; may be an empty dict), `sums` is a tree of floats that is added up, as gradients are.
      parts: how many; it must divide the batch. Each part takes every parts-th example, so that a batch sharded over
        devices needs no communication. Part i gets jax.random.fold_in(rng, i).

    Raises, when called:
      UserError: the batch does not divide.
    """

    def whole(params: Any, stats: Any, batch: Any, rng: Any) -> tuple[Any, Any, Any]:
        def part(x: jax.Array) -> jax.Array:
            if x.shape[0] % parts:
                raise UserError(f"A batch of {x.shape[0]} cannot be accumulated in {parts} equal parts.")
            return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

        def add(carry: Any, i_and_batch: Any) -> tuple[Any, None]:
            totals, stats = carry
            i, batch = i_and_batch
            gradient, stats, sums = gradient_of(params, stats, batch, jax.random.fold_in(rng, i))
            return (jax.tree.map(jnp.add, totals, (gradient, sums)), stats), None

        batches = jax.tree.map(part, batch)
        gradient, _, sums = jax.eval_shape(gradient_of, params, stats, jax.tree.map(lambda x: x[0], batches), rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, sums))
        ((gradient, sums), stats), _ = jax.lax.scan(add, (zeros, stats), (jnp.arange(parts), batches))
        return gradient, stats, sums

    return whole
