"""The experts that label photos, by name; one row each, after the experts whose labels it needs."""

from __future__ import annotations

from prismer_jax.experts.expert import Expert, Label

__all__ = ["EXPERTS", "Expert", "Label"]

EXPERTS: dict[str, type[Expert]] = {}
