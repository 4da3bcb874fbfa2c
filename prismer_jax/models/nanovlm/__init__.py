"""nanoVLM (huggingface/nanoVLM): a family of prismer_jax.models, and how its files convert."""

from prismer_jax.models.nanovlm.model import FEATURES, FREEZE, RESIZE, VARIANTS, NanoVLM, build

__all__ = ["FEATURES", "FREEZE", "RESIZE", "VARIANTS", "NanoVLM", "build"]
