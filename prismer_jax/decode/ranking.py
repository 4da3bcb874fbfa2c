"""Ranking of given answers, of one batch inside jit (`rank`) and of whole batches (`rank_answers`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prismer_jax.decode.batch import run
from prismer_jax.decode.cache import Batch, Cache, Extend, Prefill, reorder
from prismer_jax.decode.prefix_tree import lay_out, number_prefixes
from prismer_jax.typing import Array, Bool, Float, Int, typed

GROUP = 128  # candidates that are read as one tree: attention within it is quadratic in its nodes
ROOMS = (1.5, 2.25)  # nodes of a tree for each of its candidates that programs are compiled for, besides the most


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
    cross-entropy, averaged over the answer's tokens. The prompt is computed once, all candidates in one step: as trees,
    in which answers share the tokens that they begin with and no padding is read.
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
    first = jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0, answers[:, 0]]
    candidates = lax.top_k(jnp.where(answer_mask[:, 0], first, -jnp.inf), min(k, len(answers)))[1]
    tokens, labelled = answers[candidates], answer_mask[candidates]  # [B,k,L]
    smoothed = functools.partial(_smoothed, smoothing=label_smoothing)
    losses = jax.vmap(smoothed)(logits, jnp.zeros_like(tokens[..., :1]), tokens[..., :1])
    if length > 1:
        rest = _losses_behind_first(extend, cache, tokens, labelled, smoothed)
        losses = jnp.concatenate([losses, rest], axis=-1)
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


def _losses_behind_first(
    extend: Extend, cache: Cache, tokens: Array, labelled: Array, smoothed: Callable[..., Array]
) -> Float[Array, "b k l"]:
    """Returns the losses of all columns of candidates [b k 1+l] but the first, any number where `labelled` is False.

    How many nodes the trees of a batch have is known on the device alone; a program is compiled for each of a few
    numbers of them, and the smallest that holds all of them is run.
    """
    (count, k, _), group = tokens.shape, min(GROUP, tokens.shape[1])
    groups = -(-k // group)

    def grouped(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, groups * group - k), (0, 0)))
        return x.reshape(count, groups, group, x.shape[-1])

    # What is read is followed by a token: an answer's end is none.
    inputs, labels, real = grouped(tokens[..., :-1]), grouped(tokens[..., 1:]), grouped(labelled[..., 1:])
    nodes, number = _for_each(number_prefixes)(inputs, real)

    def losses(size: int, cache: Cache) -> Array:
        tree, seen = _for_each(functools.partial(lay_out, size=size))(inputs, real, nodes)
        logits, _ = extend(reorder(cache, jnp.zeros((count, groups), jnp.int32)), tree, seen)
        return _for_each(smoothed)(logits, nodes, labels)

    most = group * inputs.shape[-1]
    sizes = sorted({min(math.ceil(room * group), most) for room in ROOMS} | {most})
    smallest = jnp.searchsorted(jnp.asarray(sizes), number.max())
    by_group = lax.switch(smallest, [functools.partial(losses, size) for size in sizes], cache)
    return by_group.reshape(count, groups * group, -1)[:, :k]


def _for_each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of arrays with two more axes in front, those of rows and groups."""
    return jax.vmap(jax.vmap(function))


def _smoothed(
    logits: Float[Array, "n v"], places: Int[Array, "*s"], labels: Int[Array, "*s"], smoothing: float
) -> Float[Array, "*s"]:
    """Label-smoothed cross-entropy of labels after these places: (1-ε)·nll + ε·mean over the vocabulary of -log p."""
    logits = logits.astype(jnp.float32)
    total, mean = jax.nn.logsumexp(logits, axis=-1), logits.mean(-1)
    return total[places] - (1 - smoothing) * logits[places, labels] - smoothing * mean[places]
