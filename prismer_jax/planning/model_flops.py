"""The floating-point operations that a model needs, as MFU counts them (PaLM, arXiv 2204.02311, appendix B).

The matrix products of the forward and the backward pass, each once: neither what is computed again to save memory, nor
what several devices compute alike. What is frozen costs no backward pass where none is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

from prismer_jax.planning.program import positions


def count(jaxpr: Any) -> float:
    """Returns the operations of a jaxpr's matrix products and convolutions, of all devices together.

    What no output needs is left out, as the compiler leaves it out: a function with a derivative of its own, as
    `towers.layers.product`, is traced with the gradients of frozen kernels too.
    """
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            total += _convolution(eqn)
        elif eqn.primitive.name == "cond":
            total += max(_count(branch.jaxpr) for branch in eqn.params["branches"])
        else:
            total += eqn.params.get("length", 1) * sum(map(_count, _inner(eqn)))
    return total


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
