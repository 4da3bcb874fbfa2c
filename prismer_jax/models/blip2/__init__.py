"""BLIP-2 (salesforce/LAVIS): a family of prismer_jax.models, its losses, and how its files convert."""

from prismer_jax.models.blip2.model import FEATURES, FREEZE, RESIZE, VARIANTS, build

__all__ = ["FEATURES", "FREEZE", "RESIZE", "VARIANTS", "build"]
