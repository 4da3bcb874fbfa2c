"""nanoVLM (huggingface/nanoVLM): a family of prismer_jax.models, and how its files convert."""

from prismer_jax.models.nanovlm.model import FREEZE, RESIZE, VARIANTS, NanoVLM, build

__all__ = ["FREEZE", "RESIZE", "VARIANTS", "NanoVLM", "build"]
