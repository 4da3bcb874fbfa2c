"""How PaliGemma is split over the axis tensor of a mesh: as every model of these towers."""

from prismer_jax.models.nanovlm.split import tensor_rules

__all__ = ["tensor_rules"]
