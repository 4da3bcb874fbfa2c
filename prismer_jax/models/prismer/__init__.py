"""Prismer and PrismerZ (arXiv 2303.02506): a family of prismer_jax.models, and how its official files convert."""

from prismer_jax.models.prismer.model import FREEZE, RESIZE, VARIANTS, Prismer, build

__all__ = ["FREEZE", "RESIZE", "VARIANTS", "Prismer", "build"]
