"""Kernels of dense layers in four or eight bits a weight, for those that are only read.

Weights are codes times the scale of their block, of rows of one column: what a dense layer sums over, as in Dettmers et
al., QLoRA (arXiv 2305.14314). There a scale is the largest size in a block of 64, quantised once more. Here blocks of
four bits have 16 rows, and a scale is a byte, a sixth of an octave and a sign: of several the one that comes nearest to
its weights, as the codes are not the same on both sides of 0.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.typing import Array, Float, typed

# NormalFloat4: equally likely values of a normal distribution, 0 among them (arXiv 2305.14314, appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
BLOCK = {"nf4": 16, "int8": 128}  # rows that share a scale: 0.5625 and 1.016 bytes a weight
LARGEST = 127  # code of int8
TINY = np.finfo(np.float32).tiny  # in place of a scale of 0
OCTAVE, LOWEST, SIGN = 6, -14, 128  # scales of nf4 in an octave, the least, 2^-14, and what a negative one adds
SCALES = np.outer([1, -1], 2.0 ** (np.arange(SIGN) / OCTAVE + LOWEST)).ravel().astype(np.float32)  # up to 2^7
# Those tried, of either sign, from that nearest to the largest size in a block.
TRIED = np.add.outer([0, SIGN], range(-2, 4)).ravel()


@typed
def pack(kernel: Float[Array, "*layers i o"], kind: str) -> dict[str, Array]:
    """Returns {'codes', 'scales'} of kernels.

    Codes are uint8 [*layers i/2 o] for 'nf4', two rows a byte, the first in its lower half, and int8 [*layers i o] for
    'int8'; scales are [*layers i/block o], uint8 of SCALES for 'nf4' and bfloat16 for 'int8'.
    """
    rows, block, kernel = kernel.shape[-2], BLOCK[kind], kernel.astype(jnp.float32)
    largest = _blocks(jnp.abs(kernel), block).max(-2)
    if kind == "int8":
        scales = largest.astype(jnp.bfloat16)
        divisors = jnp.maximum(_spread(scales, block, rows), TINY)
        codes = jnp.round(LARGEST * kernel / divisors)
        return {"codes": codes.clip(-LARGEST, LARGEST).astype(jnp.int8), "scales": scales}

    x = _blocks(kernel, block)
    near = jnp.round(OCTAVE * (jnp.log2(jnp.maximum(largest, TINY)) - LOWEST))

    def better(best: tuple[Array, Array], tried: Array) -> tuple[tuple[Array, Array], None]:
        sign = tried & SIGN
        scales = jnp.uint8((near + (tried - sign)).clip(0, SIGN - 1)) | jnp.uint8(sign)
        divisors = jnp.asarray(SCALES)[scales][..., None, :]
        mistake = jnp.square(jnp.asarray(NF4)[_nearest(x / divisors)] * divisors - x).sum(-2)
        return (jnp.where(mistake < best[1], scales, best[0]), jnp.minimum(mistake, best[1])), None

    none = jnp.zeros(near.shape, jnp.uint8), jnp.full(near.shape, jnp.inf)
    (scales, _), _ = jax.lax.scan(better, none, TRIED)
    codes = _padded(_nearest(kernel / _spread(jnp.asarray(SCALES)[scales], block, rows)), 2)
    low, high = jnp.moveaxis(_blocks(codes, 2), -2, 0)
    return {"codes": low | high << 4, "scales": scales}


@typed
def unpack(packed: dict[str, Array], rows: int) -> Float[Array, "*layers i o"]:
    """Returns the kernels of so many rows, float32."""
    codes, scales = packed["codes"], packed["scales"]
    if codes.dtype == jnp.int8:
        return codes * _spread(scales, BLOCK["int8"], rows) / LARGEST
    codes = jnp.stack([codes & 15, codes >> 4], axis=-2).reshape(*codes.shape[:-2], -1, codes.shape[-1])
    return jnp.asarray(NF4)[codes[..., :rows, :]] * _spread(jnp.asarray(SCALES)[scales], BLOCK["nf4"], rows)


def _nearest(x: Array) -> Array:
    """Returns the codes, uint8, of the values in NF4 that are nearest."""
    return functools.reduce(operator.add, (jnp.uint8(x > middle) for middle in (NF4[1:] + NF4[:-1]) / 2))


def _blocks(x: Array, block: int) -> Array:
    """Returns rows in blocks, [*layers i/block block o]."""
    x = _padded(x, block)
    return x.reshape(*x.shape[:-2], -1, block, x.shape[-1])


def _padded(x: Array, multiple: int) -> Array:
    """Returns an array with rows of zeros behind its own, up to a multiple."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % multiple), (0, 0)])


def _spread(scales: Array, block: int, rows: int) -> Array:
    """Returns the scale of each weight, float32."""
    return jnp.repeat(scales.astype(jnp.float32), block, axis=-2)[..., :rows, :]


def pack_stacked(kernel: Array, kind: str) -> dict[str, jax.Array]:
    """`pack`, one layer after the other: the arrays on the way are as large as a layer in float32."""
    whole = functools.partial(pack, kind=kind)
    return jax.lax.map(whole, kernel) if kernel.ndim > 2 else whole(kernel)
