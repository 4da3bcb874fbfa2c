"""Token sequences as a tree of their prefixes, so that a model reads what they share once and no padding."""

from __future__ import annotations

import jax.numpy as jnp

from prismer_jax.typing import Array, Bool, Int, typed


@typed
def number_prefixes(tokens: Int[Array, "g c"], real: Bool[Array, "g c"]) -> tuple[Int[Array, "g c"], Int[Array, ""]]:
    """Numbers the distinct prefixes of sequences: the nodes of their tree.

    Args:
      tokens: ids, padded on the right.
      real: False for padding.

    Returns:
      The node of every sequence's tokens up to each column, undefined for padding; the number of nodes.
    """
    same = jnp.cumprod((tokens[:, None] == tokens) & real, axis=-1, dtype=jnp.int32)  # [g g c]
    first = same.argmax(1)  # the first sequence that begins so
    new = real & (first == jnp.arange(len(tokens))[:, None])
    numbers = jnp.cumsum(new.ravel(), dtype=jnp.int32).reshape(new.shape) - 1
    return jnp.take_along_axis(numbers, first, axis=0), new.sum(dtype=jnp.int32)


@typed
def lay_out(
    tokens: Int[Array, "g c"], real: Bool[Array, "g c"], nodes: Int[Array, "g c"], size: int
) -> tuple[Int[Array, " {size}"], Bool[Array, "{size} {size}"]]:
    """Returns the token of every node, and which nodes each one sees: those on the way to it, and itself.

    Args:
      nodes: of `number_prefixes`.
      size: number of nodes, at least as many as there are; nobody sees those that are left over.
    """
    depth = tokens.shape[1]
    places = jnp.where(real, nodes, size)  # padding falls outside
    path = jnp.where(jnp.tri(depth, dtype=bool), nodes[:, None], -1)  # [g c c]
    paths = jnp.full((size, depth), -1).at[places].set(path, mode="drop")
    seen = (paths[..., None] == jnp.arange(size)).any(1)
    return jnp.zeros(size, tokens.dtype).at[places].set(tokens, mode="drop"), seen
