"""Object detection: UniDet's cascade over a ResNeSt, and the map of instances that is made of its boxes."""

from prismer_jax.experts.detection.expert import Detection

__all__ = ["Detection"]
