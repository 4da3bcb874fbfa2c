"""Kernels packed by what their layers read, so that outputs change little: GPTQ (Frantar et al., arXiv 2210.17323).

`quantized.pack` takes the code that is nearest to each weight. Here rows are rounded one after the other, and the error
of each moves the rows behind it, as far as their inputs go along with its own. The format is that of `quantized.pack`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax.towers import quantized
from prismer_jax.typing import Array, Float, typed

KIND, BLOCK = "nf4", quantized.BLOCK["nf4"]
ROWS = 2048  # that make up for one another at most: the products of their inputs are so many numbers squared
CHUNK = 128  # rows whose errors move those behind them at once
DAMPING = 0.01  # of the mean square of the inputs, added to each one's, as in the paper's section 3.3
UNREAD = 1e-6  # of the mean of all groups, in place of that of a group of which nothing is read

Step = Callable[[Array, Array], tuple[Any, Array]]  # (rows, their part of the factor) -> (what is made, errors)


def groups(rows: int) -> tuple[int, int]:
    """Returns how many groups of rows, which know nothing of each other, there are, and the rows of one."""
    number, unit = -(-rows // ROWS), CHUNK if rows > CHUNK else BLOCK
    return number, -(-rows // (number * unit)) * unit


def products(x: Float[Array, "*b i"]) -> Float[Array, "g r r"]:
    """Returns the sum over all tokens of the products of what the rows of a group read, float32."""
    number, size = groups(x.shape[-1])
    x = jnp.pad(x.reshape(-1, x.shape[-1]).astype(jnp.float32), [(0, 0), (0, number * size - x.shape[-1])])
    x = x.reshape(-1, number, size)
    return jnp.einsum("tgr,tgs->grs", x, x)


@typed
def pack(kernel: Float[Array, "i o"], read: Float[Array, "g r r"]) -> dict[str, Array]:
    """Returns a kernel's parts as `quantized.pack` does for 'nf4'; `read` are the `products` of its layer's inputs."""
    (rows, columns), (number, size) = kernel.shape, groups(kernel.shape[0])
    kernel = kernel.astype(jnp.float32)
    parts = jnp.pad(kernel, [(0, number * size - rows), (0, 0)]).reshape(number, size, columns)
    mean = jnp.trace(read, axis1=1, axis2=2).sum() / (number * size)  # of squares of inputs, which may be tiny
    factors = jax.lax.map(_factor, read / jnp.maximum(mean, quantized.TINY))

    def tried(bases: Array) -> tuple[Array, Array, Array]:
        return jax.lax.map(lambda group: _pack_group(*group, bases), (parts, factors))

    bases = quantized.bases_tried(kernel)
    codes, scales, mistakes = jax.lax.map(tried, bases)
    best = mistakes.sum(1).argmin(0)  # of each column

    def chosen(x: Array, rows: int) -> Array:
        return jnp.take_along_axis(x, best[None, None, None], 0)[0].reshape(-1, columns)[:rows]

    codes, scales = (quantized.pairs(chosen(x, n)) for x, n in ((codes, rows), (scales, -(-rows // BLOCK))))
    return {"codes": codes, "scales": scales, "bases": jnp.take_along_axis(bases, best[None, None], 0)[0]}


def pack_stacked(kernel: Array, read: Array) -> dict[str, jax.Array]:
    """`pack`, one layer after the other, of kernels [*layers i o] and products [*layers g r r]."""
    flat = kernel.reshape(-1, *kernel.shape[-2:]), read.reshape(-1, *read.shape[-3:])
    parts = jax.lax.map(lambda layer: pack(*layer), flat)
    return {part: x.reshape(*kernel.shape[:-2], *x.shape[1:]) for part, x in parts.items()}


def _factor(read: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """Returns the upper U of which UᵀU is the inverse of the damped products; its row r moves the rows behind r.

    It is the inverse of a factor of the products themselves, in reversed order: the inverse of them all, and then a
    factor of that, would need more digits than float32 has.
    """
    eye, damping = jnp.eye(len(read)), DAMPING * jnp.maximum(jnp.diag(read).mean(), UNREAD)
    lower = jnp.linalg.cholesky((read + damping * eye)[::-1, ::-1])
    return jax.scipy.linalg.solve_triangular(lower[::-1, ::-1], eye)


def _pack_group(rows: Array, factor: Array, bases: Array) -> tuple[Array, Array, Array]:
    """Returns codes [r o] and scales [r/8 o] of rows [r o], and how far what columns [o] say is off, in squares."""
    chunk = functools.partial(_sweep, functools.partial(_block, bases), BLOCK)
    (codes, scales), errors = _sweep(chunk, min(CHUNK, len(rows)), rows, factor)
    return codes, scales, jnp.square(errors).sum(0)


def _sweep(step: Step, size: int, rows: Array, factor: Array) -> tuple[Any, Array]:
    """Takes the step for so many rows after the other, of which each moves all behind it by its errors."""

    def part(rows: Array, start: Array) -> tuple[Array, tuple[Any, Array]]:
        x, moves = (jax.lax.dynamic_slice_in_dim(whole, start, size) for whole in (rows, factor))
        packed, errors = step(x, jax.lax.dynamic_slice_in_dim(moves, start, size, 1))
        return rows - moves.T @ errors, (packed, errors)  # of the rows before it U is 0

    _, rows_packed = jax.lax.scan(part, rows, jnp.arange(0, len(rows), size))
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), rows_packed)


def _block(bases: Array, x: Array, factor: Array) -> tuple[tuple[Array, Array], Array]:
    """Returns codes and scales, [1 o], of the rows of a block, and by what each of them moves those behind it."""
    scales, _ = quantized.best_scales(x[None], bases, jnp.diag(factor)[:, None] ** -2)
    scale = quantized.multipliers(bases, scales)[0]
    codes, errors = [], []
    for row in range(BLOCK):
        codes.append(quantized.nearest(x[row] / scale))
        errors.append((x[row] - jnp.asarray(quantized.NF4)[codes[row]] * scale) / factor[row, row])
        x = x - factor[row][:, None] * errors[row]
    return (jnp.stack(codes), scales), jnp.stack(errors)
