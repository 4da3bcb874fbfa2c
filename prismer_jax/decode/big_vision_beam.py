"""Beam search as PaliGemma's results were made with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from prismer_jax.decode.cache import Batch, Cache, Extend, Prefill, reorder, start
from prismer_jax.typing import Array, Float, Int, typed


class _Beams(NamedTuple):
    column: Array  # the next column to fill
    tokens: Array  # [B,K,S] open beams, best first
    sums: Array  # [B,K] of log-probabilities
    parents: Array  # [B,K] the beam of the column before that each goes on from; the cache is one column behind
    best: Array  # [B,S] the best ended sequence
    score: Array  # [B]
    cache: Cache


@typed
def beam_search(
    prefill: Prefill,
    extend: Extend,
    encoded: Any,
    batch: Batch,
    *,
    eos: int,
    pad: int,
    max_new: int,
    min_new: int = 0,
    num_beams: int = 3,
) -> tuple[Int[Array, "b 1 {max_new}"], Float[Array, "b 1"]]:
    """Searches with beams by the rules of big_vision (trainers/proj/paligemma/predict_fns.py).

    A score is the sum of the log-probabilities, whatever the length. In every column each open beam is also ended with
    `eos`, and the best ended sequence so far is kept; of the other continuations the num_beams best stay open. It stops
    where the best open beam of every image scores worse than its best ended sequence.

    Args:
      eos, pad: ids of the tokenizer, which ends a sequence and which fills it up.
      max_new, min_new: most and fewest tokens of a continuation, `eos` included.

    Returns:
      The best sequence of each image, which always ends with `eos`, and its score.

    Raises:
      UserError: there is no column to fill.
    """

    def advance(state: _Beams, logits: Array) -> _Beams:
        vocab = logits.shape[-1]
        totals = state.sums[..., None] + jax.nn.log_softmax(logits.astype(jnp.float32))
        ended = totals[..., eos]
        first = ended.argmax(-1, keepdims=True)
        better = (ended.max(-1) > state.score) & (state.column + 1 >= min_new)
        closed = jnp.take_along_axis(state.tokens, first[..., None], axis=1)[:, 0]
        closed = jnp.where(jnp.arange(max_new) == state.column, eos, closed)
        best = jnp.where(better[:, None], closed, state.best)
        sums, going = lax.top_k(totals.at[..., eos].set(-jnp.inf).reshape(len(totals), -1), num_beams)
        parents, token = going // vocab, (going % vocab).astype(jnp.int32)
        tokens = jnp.take_along_axis(state.tokens, parents[..., None], axis=1)
        tokens = lax.dynamic_update_slice_in_dim(tokens, token[..., None], state.column, axis=2)
        score = jnp.where(better, ended.max(-1), state.score)
        return _Beams(state.column + 1, tokens, sums, parents, best, score, state.cache)

    def body(state: _Beams) -> _Beams:
        last = lax.dynamic_slice_in_dim(state.tokens, state.column - 1, 1, axis=2)
        logits, cache = extend(reorder(state.cache, state.parents), last)
        return advance(state._replace(cache=cache), logits[:, :, 0])

    tokens, logits, cache = start(prefill, encoded, batch, num_beams, max_new, pad)
    shape = tokens.shape[:2]
    sums = jnp.where(jnp.arange(num_beams) == 0, 0.0, -1e9)  # all beams start alike: only the first has children
    sums = jnp.broadcast_to(sums, shape).astype(jnp.float32)
    none = jnp.full(shape[0], -jnp.inf, jnp.float32)
    state = _Beams(jnp.zeros((), jnp.int32), tokens, sums, jnp.zeros(shape, jnp.int32), tokens[:, 0], none, cache)
    state = advance(state, logits)
    state = lax.while_loop(lambda s: (s.column < max_new) & (s.sums[:, 0] >= s.score).any(), body, state)
    return state.best[:, None], state.score[:, None]
