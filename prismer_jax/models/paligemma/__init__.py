"""PaliGemma 1 and 2 (google-research/big_vision): a family of prismer_jax.models, and how its files convert."""

from prismer_jax.models.paligemma.model import FREEZE, NOT_DECAYED, RESIZE, VARIANTS, PaliGemma, build

__all__ = ["FREEZE", "NOT_DECAYED", "RESIZE", "VARIANTS", "PaliGemma", "build"]
