"""Segmentation: Mask2Former with a Swin backbone, and what is made of its masks."""

from prismer_jax.experts.segmentation.expert import SegAde, SegCoco

__all__ = ["SegAde", "SegCoco"]
