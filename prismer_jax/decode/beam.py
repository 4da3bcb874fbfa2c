"""Beam search."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from prismer_jax.decode.cache import Batch, Cache, Extend, Prefill, log_probs_of, reorder, start
from prismer_jax.typing import Array, Float, Int, typed


class _Pool(NamedTuple):
    """The K best ended sequences of each image so far."""

    tokens: Array  # [B,K,S]
    scores: Array  # [B,K], -inf in an empty slot
    born: Array  # [B,K] order of entry, -1 in an empty slot

    def add(self, tokens: Array, scores: Array, valid: Array, time: Array) -> _Pool:
        """Offers candidates one after the other along axis 1: into an empty slot, or instead of the worst if better.

        Of several equally bad the one that entered first goes. All that depends on the order of entry is in `born`.
        """
        slots = self.scores.shape[1]

        def offer(best: tuple[Array, ...], candidate: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
            best_scores, born, source = best
            rank, score, is_valid = candidate
            worst = best_scores.min(-1, keepdims=True)
            oldest = jnp.where(best_scores == worst, born, jnp.iinfo(born.dtype).max).argmin(-1, keepdims=True)
            empty = jnp.take_along_axis(born, oldest, axis=1) < 0
            enters = is_valid[:, None] & (empty | (score[:, None] > worst))
            here = (jnp.arange(slots) == oldest) & enters
            best_scores = jnp.where(here, score[:, None], best_scores)
            born = jnp.where(here, time * slots + rank, born)
            return (best_scores, born, jnp.where(here, slots + rank, source)), None

        own = jnp.broadcast_to(jnp.arange(slots), self.scores.shape)
        candidates = (jnp.arange(slots), scores.T, valid.T)
        (best_scores, born, source), _ = lax.scan(offer, (self.scores, self.born, own), candidates)
        both = jnp.concatenate([self.tokens, tokens], axis=1)
        return _Pool(jnp.take_along_axis(both, source[..., None], axis=1), best_scores, born)


class _Beams(NamedTuple):
    column: Array  # the next column to fill
    tokens: Array  # [B,K,S] open beams, best first
    sums: Array  # [B,K] of log-probabilities
    parents: Array  # [B,K] the beam of the column before that each goes on from; the cache is one column behind
    pool: _Pool
    done: Array  # [B]
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
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    num_return: int = 1,
    prompt_length: Int[Array, ""] | int = 0,
    counts_end: bool = False,
    ahead: int = 0,
    repetition_penalty: float = 1.0,
    starts: bool = False,
) -> tuple[Int[Array, "b {num_return} {max_new}"], Float[Array, "b {num_return}"]]:
    """Searches with beams by the rules of transformers 4.26.1, which made the published Prismer results.

    A sequence's score is (sum of log-probabilities, that of `eos` included) / length ** length_penalty, where the
    length counts `prompt_length` but not `eos`. In every column the 2·num_beams best continuations are looked at, best
    first: an `eos` among the first num_beams ends a sequence, a later one is dropped, the first num_beams others stay
    open. An image is done when num_beams sequences have ended and the worst of them scores at least as well as the best
    continuation would (always, with `early_stopping`); at max_new the open beams compete as they are. Equal
    continuations are taken in the order beam, token id; of equal ended sequences the later one is returned first.

    Args:
      eos, pad: ids of the tokenizer, which ends a sequence and which fills it up.
      max_new, min_new: most and fewest tokens of a continuation, without `eos`.
      prompt_length, counts_end, ahead, repetition_penalty, starts: what counts as length and as said; decode.lengths.

    Returns:
      The num_return best sequences of each image, best first: the tokens after the prompt, `pad` after `eos`; scores.

    Raises:
      UserError: there is no column to fill.
    """
    norm = jnp.maximum(jnp.arange(max_new + 1) + prompt_length, 1).astype(jnp.float32)
    norm = norm**length_penalty  # of what ends before a column

    def advance(state: _Beams, logits: Array) -> _Beams:
        column, vocab = state.column, logits.shape[-1]
        _, log_probs = log_probs_of(logits, column, min_new, eos)
        if repetition_penalty != 1:
            rules = importlib.import_module("prismer_jax.decode.lengths")
            said = rules.said_before(batch, pad if starts else None, None if counts_end else prompt_length)
            log_probs = rules.penalized(log_probs, *said, state.tokens, column, repetition_penalty)
        totals = (state.sums[..., None] + log_probs).reshape(-1, num_beams * vocab)
        # Without a barrier XLA sorts whole rows on a CPU, as totals are sliced below: findings/jax_cpu_top_k_sliced.sh.
        # One barrier for each: XLA aborts where top_k's pair meets one on a mesh of devices (jaxlib 0.10.2).
        totals, best = map(lax.optimization_barrier, lax.top_k(totals, 2 * num_beams))
        parents, token = best // vocab, (best % vocab).astype(jnp.int32)
        ends = token == eos

        def grow(which: Array) -> Array:  # candidates' sequences with their last token, [B,K,S]
            rows, last = jnp.take_along_axis(parents, which, 1), jnp.take_along_axis(token, which, 1)
            old = jnp.take_along_axis(state.tokens, rows[..., None], axis=1)
            return lax.dynamic_update_slice_in_dim(old, last[..., None], column, axis=2)

        ranks = jnp.broadcast_to(jnp.arange(num_beams), state.sums.shape)
        scores = totals[:, :num_beams] / norm[column + counts_end]
        pool = state.pool.add(grow(ranks), scores, ends[:, :num_beams] & ~state.done[:, None], column)
        going = jnp.argsort(ends, axis=1, stable=True)[:, :num_beams]  # at most one end a beam: num_beams are left
        sums, origins = jnp.take_along_axis(totals, going, 1), jnp.take_along_axis(parents, going, 1)

        full = (pool.born >= 0).all(-1) & ~(counts_end & (column + 1 == max_new))
        best_possible = (sums if counts_end else totals)[:, 0] / norm[column + ahead]
        done = state.done | (full & (early_stopping | (pool.scores.min(-1) >= best_possible)))
        return _Beams(column + 1, grow(going), sums, origins, pool, done, state.cache)

    def body(state: _Beams) -> _Beams:
        last = lax.dynamic_slice_in_dim(state.tokens, state.column - 1, 1, axis=2)
        logits, cache = extend(reorder(state.cache, state.parents), last)
        return advance(state._replace(cache=cache), logits[:, :, 0])

    tokens, logits, cache = start(prefill, encoded, batch, num_beams, max_new, pad)
    shape = tokens.shape[:2]
    # All beams start alike: only the first may have children, or the same sequence would be found num_beams times.
    sums = jnp.broadcast_to(jnp.where(jnp.arange(num_beams) == 0, 0.0, -1e9), shape).astype(jnp.float32)
    pool = _Pool(tokens, jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32))
    first = _Beams(jnp.int32(0), tokens, sums, jnp.zeros(shape, jnp.int32), pool, jnp.zeros(shape[0], bool), cache)
    state = lax.while_loop(lambda s: (s.column < max_new) & ~s.done.all(), body, advance(first, logits))

    still_open = jnp.broadcast_to(~state.done[:, None], shape)
    pool = state.pool.add(state.tokens, state.sums / norm[max_new], still_open, state.column)
    order = jnp.flip(jnp.lexsort((pool.born, pool.scores), axis=-1), axis=-1)[:, :num_return]
    return jnp.take_along_axis(pool.tokens, order[..., None], axis=1), jnp.take_along_axis(pool.scores, order, axis=1)
