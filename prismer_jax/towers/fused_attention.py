"""Attention on a TPU whose weights never leave the chip: JAX's splash kernel, as `layers.attend` calls it.

Elsewhere the weights [b h t s] go through memory several times, forward and backward: at 480 pixels that is more than
half of all that a training step of Prismer moves (docs/scaling.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from prismer_jax.sharding import BATCH_AXES, free_axes
from prismer_jax.typing import Array, Bool, Float, typed

LANES = 128  # of a TPU's vectors: blocks are multiples of them
BLOCK = 2048  # bytes of a channel of a block: more in float32 do not fit the 16 MiB that a kernel has on a TPU v4
MASKED = 512  # queries and keys of a block with a mask, of four bytes a pair; what nobody of a block sees is left out


@typed
def attend(
    q: Float[Array, "*b t h d"],
    k: Float[Array, "*b s g d"],
    v: Float[Array, "*b s g d"],
    mask: Bool[Array | np.ndarray, "*n t s"] | None = None,
    cap: float = 0.0,
    interpret: Any = False,
) -> Float[Array, "*b t h d"]:
    """Returns softmax(q kᵀ / √d) v of every head; products are summed, and the softmax made, in float32.

    Each device computes its rows of a batch and, where a mesh has an axis `tensor`, its heads.

    Args:
      mask: True where a query may look, broadcast to [*b t s]; a query that sees nothing is given the first key.
      cap: bounds the logits, see layers.soft_cap; 0 for none.
      interpret: True, or how (pallas' InterpretParams), to run the kernel as JAX operations on any platform: for tests.
    """
    shape, pairs = q.shape, (*q.shape[:-2], k.shape[-3])
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    mask = None if mask is None else jnp.broadcast_to(mask, pairs).reshape(-1, *pairs[-2:])
    free, local = free_axes(), functools.partial(_local, cap=cap, interpret=interpret)
    rows = tuple(axis for axis in BATCH_AXES if axis in free)
    rows = rows if q.shape[0] % math.prod(free[axis] for axis in rows) == 0 else ()
    heads, groups = q.shape[2], k.shape[2]
    split = "tensor" in free and heads % free["tensor"] == 0 and (groups == 1 or groups % free["tensor"] == 0)
    ours, theirs = (
        PartitionSpec(rows or None, None, "tensor" if split and count > 1 else None) for count in (heads, groups)
    )
    if free:
        specs = ours, theirs, theirs, PartitionSpec(rows or None)
        local = jax.shard_map(local, in_specs=specs, out_specs=ours, axis_names={*free}, check_vma=False)
    return local(q, k, v, mask).reshape(shape)


def _local(q: Array, k: Array, v: Array, mask: Array | None, cap: float, interpret: Any) -> Array:
    (_, t, _, d), s = q.shape, k.shape[1]
    most = BLOCK // q.dtype.itemsize if mask is None else MASKED
    (block_q, t_whole), (block_k, s_whole) = (_blocks(length, most) for length in (t, s))
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        use_fused_bwd_kernel=True,
    )
    make = functools.partial(
        splash.make_splash_mha,
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
    )
    q, k, v = _filled(q * d**-0.5, t_whole), _filled(k, s_whole), _filled(v, s_whole)
    out = _everywhere(make, s, q, k, v) if mask is None else _masked(make, mask, q, k, v)
    return rearrange(out[:, :, :t], "b h t d -> b t h d")


def _everywhere(make: Callable[..., Any], s: int, q: Array, k: Array, v: Array) -> Array:
    """Attends to the first `s` keys. All rows' heads are the kernel's; under vmap its sums [b t d] went to memory."""
    (rows, _, t, _), s_whole = q.shape, k.shape[2]
    kernel = make(masks.MultiHeadMask([masks.FullMask((t, s_whole))]))
    # What fills up the last block of keys is another segment's; queries that fill up theirs see what others see.
    segments = None
    if s < s_whole:
        segments = splash.SegmentIds(np.zeros(t, np.int32), (np.arange(s_whole) >= s).astype(np.int32))
    out = kernel(*(rearrange(x, "b h t d -> (b h) t d") for x in (q, k, v)), segment_ids=segments)
    return rearrange(out, "(b h) t d -> b h t d", b=rows)


def _masked(make: Callable[..., Any], mask: Array, q: Array, k: Array, v: Array) -> Array:
    """Attends row by row: all heads of one share a mask, and a kernel takes one mask, or one of each head."""
    mask = jnp.pad(mask, [(0, 0), *((0, x.shape[2] - size) for x, size in zip((q, k), mask.shape[1:], strict=True))])
    # A block of queries of which none sees anything would be NaN (findings/jax_splash_masks.sh).
    mask |= ~mask.any(-1, keepdims=True) & (jnp.arange(k.shape[2]) == 0)

    def row(given: tuple[Array, ...]) -> Array:
        *qkv, seen = given
        kernel = make(seen[None])
        # It names a scope by this boolean, which within jit is an array: the same file shows it.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=None)
        return kernel(*qkv)

    return jax.lax.map(row, (q, k, v, mask))


def _blocks(length: int, most: int) -> tuple[int, int]:
    """Returns the length of a block, a multiple of LANES, and that of as many as hold `length`, of which few are more.

    A block has at most `most`, and half of it at least where there are several: small ones read keys more often.
    """
    least = min(-(-length // LANES) * LANES, most // 2)
    sizes = [size for size in range(LANES, most + 1, LANES) if size >= least]
    whole, block = min((-(-length // size) * size, -size) for size in sizes)
    return -block, whole


def _filled(x: Array, length: int) -> Array:
    return jnp.pad(rearrange(x, "b s h d -> b h s d"), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
