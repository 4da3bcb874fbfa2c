"""The floating-point operations that a model needs, as MFU counts them (PaLM, arXiv 2204.02311, appendix B).

The matrix products of the forward and the backward pass, each once: neither what is computed again to save memory, nor
what several devices compute alike. What is frozen costs no backward pass where none is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.interpreters import partial_eval

from prismer_jax.planning.program import positions


class Product(NamedTuple):
    """A matrix product or a convolution that is computed `times` times.

    `flops` are the operations of one of them, `size` the bytes of its operands and its result.
    """

    times: int
    flops: float
    size: float


def count(jaxpr: Any) -> float:
    """Returns the operations of a jaxpr's matrix products and convolutions, of all devices together."""
    return sum(one.times * one.flops for one in products(jaxpr))


def products(jaxpr: Any, *, turns: int = 1, branch: Callable[..., Any] = max) -> list[Product]:
    """Returns the matrix products and convolutions of a jaxpr, of all devices together.

    What no output needs is left out, as the compiler leaves it out: a function with a derivative of its own, as
    `towers.layers.product`, is traced with the gradients of frozen kernels too.

    Args:
      turns: of a loop whose end only its data know.
      branch: which of a condition's branches counts, `max` or `min` by their operations.
    """
    return list(_products(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], 1, turns, branch))


def _products(jaxpr: Any, times: int, turns: int, branch: Callable[..., Any]) -> Iterator[Product]:
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, list(_inner(eqn))
        if name == "cond":
            branches = [list(_products(one, times, turns, branch)) for one in inner]
            yield from branch(branches, key=lambda each: sum(one.times * one.flops for one in each))
        elif name in ("dot_general", "conv_general_dilated"):
            flops = _product(eqn) if name == "dot_general" else _convolution(eqn)
            avals = [var.aval for var in (*eqn.invars, *eqn.outvars)]
            yield Product(times, flops, sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals))
        else:
            again = turns if name == "while" else eqn.params.get("length", 1)
            for one in inner:
                yield from _products(one, times * again, turns, branch)


def _product(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _inner(eqn: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value.jaxpr


def _convolution(eqn: Any) -> float:
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    left, right, out = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    total = 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * right[numbers.rhs_spec[1]]
    for axis in range(len(params["window_strides"])):
        total *= positions(
            left[numbers.lhs_spec[2 + axis]],
            right[numbers.rhs_spec[2 + axis]],
            out[numbers.out_spec[2 + axis]],
            params["window_strides"][axis],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
            params["padding"][axis][0],
        )
    return total
