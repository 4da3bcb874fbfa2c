"""The experts that label photos, by name; one row each, after the experts whose labels it needs."""

from __future__ import annotations

from prismer_jax.experts.depth import Depth
from prismer_jax.experts.detection import Detection
from prismer_jax.experts.edge import Edge
from prismer_jax.experts.expert import Expert, Label
from prismer_jax.experts.normal import Normal
from prismer_jax.experts.ocr import OcrDetection
from prismer_jax.experts.segmentation import SegAde, SegCoco
from prismer_jax.experts.student import Student

__all__ = ["EXPERTS", "Expert", "Label", "Student"]

_ROWS: tuple[type[Expert], ...] = (Depth, Normal, Edge, SegCoco, SegAde, Detection, OcrDetection)
EXPERTS: dict[str, type[Expert]] = {expert.name: expert for expert in _ROWS}
