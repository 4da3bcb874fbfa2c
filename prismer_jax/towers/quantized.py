"""Kernels of dense layers in four or eight bits a weight, for those that are only read.

Weights are codes times the scale of their block, of rows of one column: what a dense layer sums over, as in Dettmers et
al., QLoRA (arXiv 2305.14314). There a scale is the largest size in a block of 64, quantised once more. Here a block of
four bits has 8 rows, and its scale four bits too: a third of an octave each below the base of its column, and a sign,
as the codes are not the same on both sides of 0. Of the scales tried that one is taken which comes nearest.
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
BLOCK = {"nf4": 8, "int8": 128}  # rows that share a scale: 0.5625 and 1.016 bytes a weight
LARGEST = 127  # code of int8
TINY = np.finfo(np.float32).tiny  # in place of a scale of 0
BASES = (2.0 ** (np.arange(256) / 6 - 30)).astype(np.float32)  # of columns, 2^-30 to 2^12
STEPS, SIGN = 8, 8  # of a scale below its base, each a third of an octave, and what a negative one adds
SCALES = np.outer([1, -1], 2.0 ** (-np.arange(STEPS) / 3)).ravel().astype(np.float32)  # in parts of the base
# Those tried: bases that are so many codes above the largest size in their column, and of each the scales, of either
# sign, that are so many steps above the largest in their block.
BASES_TRIED, TRIED = np.array([0, 2]), np.array([(sign, step) for sign in (0, SIGN) for step in range(4)])


@typed
def pack(kernel: Float[Array, "*layers i o"], kind: str) -> dict[str, Array]:
    """Returns {'codes', 'scales'} of kernels, with 'bases' of 'nf4'.

    Codes of 'int8' are int8 [*layers i o], scales bfloat16 [*layers i/128 o]. Codes of 'nf4' are uint8 [*layers i/2 o],
    two rows a byte, the first in its lower half; so are scales, two blocks a byte, uint8 [*layers i/16 o] of SCALES;
    bases are uint8 [*layers 1 o] of BASES. Parts of a byte and of a block count as whole ones.
    """
    rows, block, kernel = kernel.shape[-2], BLOCK[kind], kernel.astype(jnp.float32)
    if kind == "int8":
        scales = _blocks(jnp.abs(kernel), block).max(-2).astype(jnp.bfloat16)
        divisors = jnp.maximum(_spread(scales, block, rows), TINY)
        codes = jnp.round(LARGEST * kernel / divisors)
        return {"codes": codes.clip(-LARGEST, LARGEST).astype(jnp.int8), "scales": scales}

    bases, x = bases_tried(kernel), _blocks(kernel, block)
    scales, mistakes = jax.lax.map(functools.partial(best_scales, x), bases)
    best = mistakes.argmin(0, keepdims=True)
    bases, scales = (jnp.take_along_axis(each, best, 0)[0] for each in (bases, scales))
    codes = nearest(kernel / _spread(multipliers(bases, scales), block, rows))
    return {"codes": pairs(codes), "scales": pairs(scales), "bases": bases}


def bases_tried(kernel: Array) -> Array:
    """Returns codes of the bases, [2 *layers 1 o], of which the better is each column's."""
    largest = jnp.abs(kernel).max(-2, keepdims=True)
    near = jnp.searchsorted(jnp.asarray(np.sqrt(BASES[1:] * BASES[:-1])), largest)
    return (near + BASES_TRIED.reshape(-1, *[1] * near.ndim)).clip(0, len(BASES) - 1).astype(jnp.uint8)


def best_scales(x: Array, bases: Array, weights: Array | float = 1.0) -> tuple[Array, Array]:
    """Returns codes of the scales of blocks x [*layers i/8 8 o] by these bases, and how far columns are off with them.

    That is [*layers 1 o], the sum of squares, which `weights` multiply.
    """
    base, largest = jnp.asarray(BASES)[bases], jnp.maximum(jnp.abs(x).max(-2), TINY)
    near = jnp.round(3 * jnp.log2(base / largest)).astype(jnp.int32)

    def better(best: tuple[Array, Array], tried: Array) -> tuple[tuple[Array, Array], None]:
        code = ((near - tried[1]).clip(0, STEPS - 1) + tried[0]).astype(jnp.uint8)
        scale = multipliers(bases, code)[..., None, :]
        mistake = (weights * jnp.square(jnp.asarray(NF4)[nearest(x / scale)] * scale - x)).sum(-2)
        return (jnp.where(mistake < best[1], code, best[0]), jnp.minimum(mistake, best[1])), None

    none = jnp.zeros(near.shape, jnp.uint8), jnp.full(near.shape, jnp.inf)
    (scales, mistakes), _ = jax.lax.scan(better, none, TRIED)
    return scales, mistakes.sum(-2, keepdims=True)


@typed
def unpack(packed: dict[str, Array], rows: int) -> Float[Array, "*layers i o"]:
    """Returns the kernels of so many rows, float32."""
    codes, scales = packed["codes"], packed["scales"]
    if codes.dtype == jnp.int8:
        return codes * _spread(scales, BLOCK["int8"], rows) / LARGEST
    scales = multipliers(packed["bases"], _apart(scales))
    return jnp.asarray(NF4)[_apart(codes)[..., :rows, :]] * _spread(scales, BLOCK["nf4"], rows)


def multipliers(bases: Array, scales: Array) -> Array:
    """Returns what the values in NF4 are multiplied by, from the codes of bases and scales."""
    return jnp.asarray(BASES)[bases] * jnp.asarray(SCALES)[scales]


def pairs(codes: Array) -> Array:
    """Returns codes of four bits, [*layers i o], two rows a byte, and with a row of zeros where they are odd."""
    low, high = jnp.moveaxis(_blocks(codes, 2), -2, 0)
    return low | high << 4


def _apart(pairs: Array) -> Array:
    return jnp.stack([pairs & 15, pairs >> 4], axis=-2).reshape(*pairs.shape[:-2], -1, pairs.shape[-1])


def nearest(x: Array) -> Array:
    """Returns the codes, uint8, of the values in NF4 that are nearest."""
    return functools.reduce(operator.add, (jnp.uint8(x > middle) for middle in (NF4[1:] + NF4[:-1]) / 2))


def _blocks(x: Array, block: int) -> Array:
    """Returns rows in blocks, [*layers i/block block o], the last one filled up with zeros."""
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % block), (0, 0)])
    return x.reshape(*x.shape[:-2], -1, block, x.shape[-1])


def _spread(scales: Array, block: int, rows: int) -> Array:
    """Returns the scale of each weight, float32."""
    return jnp.repeat(scales.astype(jnp.float32), block, axis=-2)[..., :rows, :]


def pack_stacked(kernel: Array, kind: str) -> dict[str, jax.Array]:
    """`pack`, one layer after the other: the arrays on the way are as large as a layer in float32."""
    whole = functools.partial(pack, kind=kind)
    return jax.lax.map(whole, kernel) if kernel.ndim > 2 else whole(kernel)
