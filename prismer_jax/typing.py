"""Array types for signatures. `@typed` checks them when a function is traced, which costs nothing at run time."""

from __future__ import annotations

from beartype import BeartypeConf, beartype
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8, jaxtyped

__all__ = ["Array", "Bool", "Float", "Int", "PyTree", "Shaped", "UInt8", "typed"]

# An int may stand for a float, as in every other Python signature.
typed = jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))
