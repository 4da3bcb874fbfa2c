"""One token after the other, the likeliest each time; sampling.py draws it instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from prismer_jax.decode.cache import Batch, Cache, Extend, Prefill, log_probs_of, start
from prismer_jax.typing import Array, Float, Int, typed


class _Running(NamedTuple):
    column: Array  # the next column to fill
    tokens: Array  # [B,K,S]
    scores: Array  # [B,K]
    done: Array  # [B,K]
    cache: Cache


def fill(
    prefill: Prefill,
    extend: Extend,
    encoded: Any,
    batch: Batch,
    count: int,
    pick: Callable[[Array, Array], Array],
    *,
    eos: int,
    pad: int,
    max_new: int,
    min_new: int,
    forbidden: Sequence[int],
) -> tuple[Array, Array]:
    """Fills column after column with `pick(log_probs [B,K,V], column) -> [B,K]`; a score sums the log-probabilities."""
    banned = jnp.asarray(forbidden, jnp.int32)

    def append(state: _Running, logits: Array) -> _Running:
        log_probs, allowed = log_probs_of(logits, state.column, min_new, eos)
        allowed = allowed.at[..., banned].set(-jnp.inf)
        token = jnp.where(state.done, pad, pick(allowed, state.column)).astype(jnp.int32)
        gain = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
        return _Running(
            column=state.column + 1,
            tokens=lax.dynamic_update_slice_in_dim(state.tokens, token[..., None], state.column, axis=2),
            scores=state.scores + jnp.where(state.done, 0.0, gain),
            done=state.done | (token == eos),
            cache=state.cache,
        )

    def body(state: _Running) -> _Running:
        logits, cache = extend(state.cache, lax.dynamic_slice_in_dim(state.tokens, state.column - 1, 1, axis=2))
        return append(state._replace(cache=cache), logits[:, :, 0])

    tokens, logits, cache = start(prefill, encoded, batch, count, max_new, pad)
    scores = jnp.zeros(tokens.shape[:2], jnp.float32)
    first = _Running(jnp.zeros((), jnp.int32), tokens, scores, scores > 0, cache)
    state = lax.while_loop(lambda s: (s.column < max_new) & ~s.done.all(), body, append(first, logits))
    return state.tokens, state.scores


@typed
def greedy(
    prefill: Prefill,
    extend: Extend,
    encoded: Any,
    batch: Batch,
    *,
    eos: int,
    pad: int,
    max_new: int,
    min_new: int = 0,
    forbidden: Sequence[int] = (),
) -> tuple[Int[Array, "b 1 {max_new}"], Float[Array, "b 1"]]:
    """Takes the likeliest token in every column, until `eos` or max_new of them.

    Args:
      forbidden: ids that are never taken.

    Returns:
      The tokens after the prompt, `pad` after `eos`; the sum of the log-probabilities of what was generated.

    Raises:
      UserError: there is no column to fill.
    """
    options = dict(eos=eos, pad=pad, max_new=max_new, min_new=min_new, forbidden=forbidden)
    return fill(prefill, extend, encoded, batch, 1, lambda log_probs, column: log_probs.argmax(-1), **options)
