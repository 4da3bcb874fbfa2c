"""What counts as a text's length, and as said before, where implementations differ: `length` of decode.generate.

BLIP-2's captions come from three: as LAVIS was published, with transformers 4.26.1, a sequence is prompt and
continuation; as it is since May 2023, with 4.33.2, it is a start token, which the model never reads, and the
continuation; in today's transformers (5.24) it is the continuation alone, whose end counts. Of T5 it is, in both that
LAVIS had, the start, which is the tokenizer's padding, and the continuation. max_new and min_new count,
scores are divided by, and a repetition penalty looks at, what a sequence is; today it looks at the prompt, too, or at
T5's start. An image's search also ends at other times: when the best continuation, were it to end as long as it is, or
with its next token, could not score better, be it an end, too; today when no open beam could, and never at max_new,
where all that is open competes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from prismer_jax.errors import choose
from prismer_jax.typing import Array, Float, Int, typed

# Name -> tokens in front of a continuation that a sequence has (None: the whole prompt), how many of them max_new
# counts, and further settings of beam_search. LAVIS gave 4.26.1 its max_length as max_new_tokens, which counts none.
LENGTHS: dict[str, tuple[int | None, int, dict[str, Any]]] = {
    "new": (0, 0, dict(ahead=1, counts_end=True)),
    "lavis_4.26": (None, 0, {}),
    "lavis": (1, 1, dict(ahead=1)),
    "start": (1, 0, dict(starts=True)),
    "new_start": (0, 0, dict(ahead=1, counts_end=True, starts=True)),
}
# counts_end: a score's length counts `eos`, too, a search ends and a penalty looks as in today's transformers.
# ahead: by how many tokens longer than it is the best continuation is taken to be when an image may be done.
# starts: what is in front of a continuation is no prompt, but the start of T5.


def settled(name: str, columns: int, max_new: int, min_new: int, method: str) -> dict[str, Any]:
    """Returns the settings of decoding by a rule, a name of LENGTHS, for prompts of so many columns.

    Args:
      max_new, min_new: LAVIS's max_length and min_length.

    Raises:
      UserError: there is no such rule.
    """
    front, counted, beams = choose("length of decoding", name, LENGTHS)
    front = columns if front is None else front
    settings = dict(max_new=max_new - counted, min_new=max(0, min_new - front))
    return settings | (dict(prompt_length=front, **beams) if method == "beam" else {})


def said_before(
    prompt: Mapping[str, Any], start: int | None, count: Array | int | None
) -> tuple[Mapping[str, Any], Array | int]:
    """Returns the first arguments of `penalized`: what was said in front of a continuation, and how much of it counts.

    Args:
      start: of T5, which stands in the place of a prompt that its encoder reads.
      count: tokens; None for all.
    """
    if start is not None:
        text = jnp.full((len(prompt["text"]), 1), start)
        prompt = {"text": text, "mask_input": text == start}
    return prompt, prompt["text"].shape[1] if count is None else count


@typed
def penalized(
    log_probs: Float[Array, "b k v"],
    prompt: Mapping[str, Any],
    count: Int[Array, ""] | int,
    tokens: Int[Array, "b k s"],
    column: Int[Array, ""] | int,
    penalty: float,
) -> Float[Array, "b k v"]:
    """Multiplies the log-probability of what was said by `penalty` (arXiv 1909.05858, but as beams do).

    Args:
      prompt: `text` and `mask_input` [b t], whose first `count` tokens were said.
      tokens: of them, those before `column` were said.
    """
    said = jnp.zeros(log_probs.shape, bool)
    batch, beam = jnp.arange(tokens.shape[0])[:, None, None], jnp.arange(tokens.shape[1])[:, None]
    said = said.at[batch, beam, tokens].max(jnp.broadcast_to(jnp.arange(tokens.shape[2]) < column, tokens.shape))
    real = prompt["mask_input"]
    counted = jnp.broadcast_to((real & (jnp.cumsum(real, axis=1) <= count))[:, None], (*said.shape[:2], real.shape[1]))
    said = said.at[batch, beam, prompt["text"][:, None]].max(counted)
    return jnp.where(said, log_probs * penalty, log_probs)
