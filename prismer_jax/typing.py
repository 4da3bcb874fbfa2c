"""Array types for signatures. `@typed` checks them when a function is traced, which costs nothing at run time."""

from __future__ import annotations

from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8, jaxtyped

__all__ = ["Array", "Bool", "Float", "Int", "PyTree", "Shaped", "UInt8", "typed"]

typed = jaxtyped(typechecker=beartype)
