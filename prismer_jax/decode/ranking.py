"""Ranking of given answers, of one batch inside jit (`rank`) and of whole batches (`rank_answers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prismer_jax.decode.batch import run
from prismer_jax.decode.cache import Batch, Extend, Prefill, reorder
from prismer_jax.typing import Array, Bool, Float, Int, typed


@typed
def rank(
    prefill: Prefill,
    extend: Extend,
    encoded: Any,
    batch: Batch,
    answers: Int[Array, "a l"],
    answer_mask: Bool[Array, "a l"],
    *,
    k: int,
    label_smoothing: float = 0.1,
) -> tuple[Int[Array, " b"], Int[Array, "b k"], Float[Array, "b k"]]:
    """Chooses among given answers, as the reference does for VQA and classification.

    The k answers with the likeliest first token after the prompt are scored by minus their label-smoothed
    cross-entropy, averaged over the answer's tokens. The prompt is computed once, all candidates in one step.
    Ties (answers that begin alike tie exactly in the first round) go to the lower index among the answers, then to the
    earlier of the k candidates; PyTorch's choice among ties is not documented.

    Args:
      answers: token ids, each with its end, padded on the right.
      answer_mask: True where there is a token. A row without any is never chosen.
      k: number of candidates, all answers if there are fewer.

    Returns:
      Index of the best answer; indices of the candidates, likeliest first token first; their scores.
    """
    length = answers.shape[1]
    logits, cache = prefill(encoded, batch, length - 1)
    log_probs = _log_softmax(logits)  # [B,1,V]
    first = jnp.where(answer_mask[:, 0], log_probs[:, 0, answers[:, 0]], -jnp.inf)
    candidates = lax.top_k(first, min(k, len(answers)))[1]
    tokens = answers[candidates]  # [B,k,L]
    losses = _smoothed(log_probs[:, None], tokens[..., :1], label_smoothing)
    if length > 1:
        logits, _ = extend(reorder(cache, jnp.zeros_like(candidates)), tokens[..., :-1])
        rest = _smoothed(_log_softmax(logits), tokens[..., 1:], label_smoothing)
        losses = jnp.concatenate([losses, rest], axis=-1)
    labelled = answer_mask[candidates]
    total, number = jnp.where(labelled, losses, 0.0).sum(-1), labelled.sum(-1)
    scores = jnp.where(number > 0, -total / jnp.maximum(number, 1), -jnp.inf)
    best = jnp.take_along_axis(candidates, scores.argmax(-1, keepdims=True), axis=1)[:, 0]
    return best, candidates, scores


@typed
def rank_answers(
    model: Any,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    answers: Int[Any, "a l"],
    answer_mask: Bool[Any, "a l"],
    *,
    padding: str = "own",
    **settings: Any,
) -> tuple[Int[Array, " b"], Int[Array, "b k"], Float[Array, "b k"]]:
    """Ranks `answers` [A,L], token ids, for a batch laid out as in `generate`; settings are those of `rank` (k=...)."""
    constants = {"answers": answers, "answer_mask": answer_mask}
    return run(model, variables, batch, constants, None, rank, settings, padding)


def _log_softmax(logits: Array) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))


def _smoothed(log_probs: Array, labels: Array, smoothing: float) -> Array:
    """Label-smoothed cross-entropy of each token: (1-ε)·nll + ε·mean over the vocabulary of -log p."""
    chosen = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    return -(1 - smoothing) * chosen - smoothing * log_probs.mean(-1)
