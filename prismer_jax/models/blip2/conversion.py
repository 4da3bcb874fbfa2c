"""What becomes of BLIP-2's files: `tools.convert blip2`."""

from __future__ import annotations

from prismer_jax.models.blip2.table import table as table_of

__all__ = ["table_of"]
