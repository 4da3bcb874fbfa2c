"""How the reference pads the prompts of a batch."""

from __future__ import annotations

import jax.numpy as jnp

from prismer_jax.typing import Array, Bool, Int, typed


@typed
def pad_as_reference(
    text: Int[Array, "b t"], mask_input: Bool[Array, "b t"], counted: Bool[Array, " b"] | None = None
) -> tuple[Int[Array, "b t"], Bool[Array, "b t"], Int[Array, ""]]:
    """Lays prompts out so that they continue as if padded on the right to the longest of the batch.

    The reference does that (model/prismer_vqa.py), so that it reads the first token of an answer off a pad wherever a
    question is not the longest of its batch: answers depend on their neighbours. How many pads there are does not
    matter, as they are never attended to and positions do not count them. So one of them is kept, behind the prompts
    that are shorter than the longest, and the rest goes to the left: every batch has the same shape.

    Args:
      text: token ids with pads anywhere.
      mask_input: True for what is no pad.
      counted: the rows that are no filling of a last batch; all by default.

    Returns:
      The prompts, their masks, and the longest one's number of tokens.
    """
    number = mask_input.sum(-1)
    longest = number.max(initial=0, where=counted)
    order = jnp.argsort(mask_input, axis=-1, stable=True)
    order = jnp.where((number < longest)[:, None], jnp.roll(order, -1, axis=-1), order)
    return jnp.take_along_axis(text, order, -1), jnp.take_along_axis(mask_input, order, -1), longest
