"""Attention on a TPU whose weights never leave the chip: JAX's splash kernel, as `layers.attend` calls it.

Elsewhere the weights [b h t s] go through memory several times, forward and backward: at 480 pixels that is more than
half of all that a training step of Prismer moves (docs/scaling.md).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from prismer_jax.sharding import BATCH_AXES, free_axes
from prismer_jax.typing import Array, Float, typed

LANES = 128  # of a TPU's vectors: blocks are multiples of them
BLOCK = 2048  # bytes of a channel of a block: more in float32 do not fit the 16 MiB that a kernel has on a TPU v4


@typed
def attend(
    q: Float[Array, "b t h d"], k: Float[Array, "b s h d"], v: Float[Array, "b s h d"], interpret: bool = False
) -> Float[Array, "b t h d"]:
    """Returns softmax(q kᵀ / √d) v of every head; products are summed, and the softmax made, in float32.

    Each device computes its rows of a batch and, where a mesh has an axis `tensor`, its heads.

    Args:
      interpret: run the kernel as JAX operations, on any platform: for tests.
    """
    free, local = free_axes(), functools.partial(_local, interpret=interpret)
    rows = tuple(axis for axis in BATCH_AXES if axis in free)
    rows = rows if q.shape[0] % math.prod(free[axis] for axis in rows) == 0 else ()
    heads = "tensor" if "tensor" in free and q.shape[2] % free["tensor"] == 0 else None
    spec = PartitionSpec(rows or None, None, heads)
    if free:
        local = jax.shard_map(local, in_specs=spec, out_specs=spec, axis_names={*free}, check_vma=False)
    return local(q, k, v)


def _local(q: Array, k: Array, v: Array, interpret: bool) -> Array:
    (_, t, heads, d), s = q.shape, k.shape[1]
    (block_q, t_whole), (block_k, s_whole) = (_blocks(length, BLOCK // q.dtype.itemsize) for length in (t, s))
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        use_fused_bwd_kernel=True,
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((t_whole, s_whole))] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    # What fills up the last block of keys is another segment's; the queries that fill up theirs see what others see.
    segments = None
    if s < s_whole:
        segments = splash.SegmentIds(np.zeros(t_whole, np.int32), (np.arange(s_whole) >= s).astype(np.int32))
    q = _filled(q * d**-0.5, t_whole)
    out = jax.vmap(lambda *qkv: kernel(*qkv, segment_ids=segments))(q, _filled(k, s_whole), _filled(v, s_whole))
    return rearrange(out[:, :, :t], "b h t d -> b t h d")


def _blocks(length: int, most: int) -> tuple[int, int]:
    """Returns the length of a block, a multiple of LANES and at most `most`, and that of as many as hold `length`."""
    count = -(-length // most)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def _filled(x: Array, length: int) -> Array:
    return jnp.pad(rearrange(x, "b s h d -> b h s d"), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
