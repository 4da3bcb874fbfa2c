"""UniDet's detector: ResNeSt, feature pyramid, region proposals, and a cascade of three heads on one label space.

Zhou et al., "Simple multi-dataset detection" (arXiv 2102.13086); the cascade is Cai and Vasconcelos's (arXiv
1712.00726). Sources of constants and of what is done in which order: xingyizhou/UniDet, configs/
Unified_learned_OCIM_RS200_6x+2x.yaml, unidet/modeling/roi_heads/{unified_roi_heads,custom_fast_rcnn}.py;
facebookresearch/detectron2 at 02b5c4e, modeling/roi_heads/{cascade_rcnn,fast_rcnn,box_head}.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts.aspect_ratio import normalize
from prismer_jax.experts.convolution import ConvNorm
from prismer_jax.experts.detection import boxes, resnest, roi_align, rpn
from prismer_jax.experts.detection.fpn import FPN
from prismer_jax.labels import EXPERTS
from prismer_jax.typing import Array, Bool, Float, Int, Shaped, typed

CLASSES = EXPERTS["obj_detection"].num_classes
# Red, green, blue; but applied to blue, green, red, which the reference feeds its model.
MEAN, DEVIATION = (123.68, 116.779, 103.939), (58.393, 57.12, 57.375)
WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))  # of the deltas of each stage
POOLED = 3  # levels of the pyramid that boxes are taken from: p3, p4, p5
OVERLAP = 0.5  # beyond which the worse of two detections of one class is dropped
ON_CPU = 40  # boxes whose features are computed together there: they stay in its cache


class BoxFeatures(nn.Module):
    """Convolutions on the pooled maps of boxes."""

    convs: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, pooled: Float[Array, "b n h w c"]) -> Float[Array, "b n d"]:
        x = rearrange(pooled, "b n h w c -> (b n) h w c")
        for i in range(self.convs):
            conv = ConvNorm(self.features, 3, padding=1, bias=False, dtype=self.dtype, name=f"conv_{i}")
            x = jax.nn.relu(conv(x))
        return rearrange(x, "(b n) h w c -> b n (c h w)", b=len(pooled))


class Stage(nn.Module):
    """One head: classes of boxes (logits, the background last), and how to move and scale them, whatever the class."""

    convs: int
    features: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self, stacked: Float[Array, "b H w c"], sizes: Sequence[tuple[int, int]], rois: Float[Array, "b n 4"]
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n 4"]]:
        n = rois.shape[1]
        together = math.gcd(n, ON_CPU) if jax.default_backend() == "cpu" else n
        scan = nn.scan(
            lambda module, _, part: (None, module(roi_align.roi_align(stacked, sizes, part))),
            variable_broadcast=("params", "batch_stats"),
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        convs = BoxFeatures(self.convs, self.features, self.dtype, name="boxes")
        _, x = scan(convs, None, rearrange(rois, "b (t n) c -> b t n c", n=together))
        x = jax.nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(rearrange(x, "b t n d -> b (t n) d")))
        logits = nn.Dense(CLASSES + 1, dtype=self.dtype, name="classes")(x)
        deltas = nn.Dense(4, dtype=self.dtype, name="deltas")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32)


class UniDet(nn.Module):
    """The whole detector, from pixels to detections.

    Attributes:
      blocks, stem, width, stage_features: of the ResNeSt.
      features: channels of the pyramid.
      box_convs, box_features, hidden: of each head.
      before, after: proposals of each level that enter their suppression, and of all that leave it.
      threshold: detections are surer than this.
      most: detections of an image.
    """

    blocks: tuple[int, ...] = resnest.BLOCKS[200]
    stem: int = 64
    width: int = 64
    stage_features: int = 256
    features: int = 256
    box_convs: int = 4
    box_features: int = 256
    hidden: int = 1024
    before: int = 1000
    after: int = 1000
    threshold: float = 0.5
    most: int = 300
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.backbone = resnest.ResNeSt(self.blocks, self.stem, self.width, self.stage_features, self.dtype)
        self.fpn = FPN(self.features, self.dtype)
        self.rpn = rpn.Head(self.dtype)
        self.stages = [Stage(self.box_convs, self.box_features, self.hidden, self.dtype) for _ in WEIGHTS]

    @typed
    def __call__(self, image: Shaped[Array, "b h w 3"], size: Int[Array, "b 2"]) -> dict[str, Array]:
        """Detects objects.

        Args:
          image: RGB, 0 to 255, padded at the bottom and right to multiples of 32.
          size: (height, width) without the padding.

        Returns:
          'boxes' [b, most, 4] in pixels, 'scores' [b, most], best first, 'classes' int [b, most], and 'valid'
          bool [b, most], which says how many there are.
        """
        levels = self.pyramid(image, size)
        proposals, logits = jax.vmap(rpn.propose, (0, 0, 0, None, None))(
            *self.objectness(levels), size, self.before, self.after
        )
        scores, corners = self.cascade(levels, proposals, size)
        usable = jnp.isfinite(logits)
        return self.detections(boxes.clip(corners, size), jnp.where(usable[..., None], scores, -jnp.inf))

    def pyramid(self, image: Array, size: Array) -> list[Array]:
        """Returns the levels p3 to p7, [b, h, w, features] each."""
        maps = self.backbone(normalize(image[..., ::-1], size, MEAN, DEVIATION))
        self.sow("intermediates", "maps", maps)
        return self.fpn(maps[1:])

    def objectness(self, levels: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Logits and deltas of each level's anchors (rpn.Head)."""
        logits, deltas = zip(*map(self.rpn, levels), strict=True)
        return list(logits), list(deltas)

    def cascade(self, levels: Sequence[Array], proposals: Array, size: Array) -> tuple[Array, Array]:
        """Sends boxes [b, n, 4] through the stages; each stage's boxes are where the next one looks.

        Returns:
          Scores of the classes [b, n, CLASSES], the mean of the stages; the last stage's boxes, not clipped.
        """
        stacked, sizes = roi_align.stack(levels[:POOLED]), [level.shape[1:3] for level in levels[:POOLED]]
        scores: Array | float = 0.0
        corners = proposals
        for i, (stage, weights) in enumerate(zip(self.stages, WEIGHTS, strict=True)):
            rois = boxes.clip(corners, size)
            logits, deltas = stage(stacked, sizes, rois)
            corners = boxes.decode(deltas, rois, weights)
            scores += jax.nn.sigmoid(logits[..., :-1])
            self.sow("intermediates", f"stage_{i}", (logits, deltas, corners))
        return scores / len(WEIGHTS), corners

    def detections(self, corners: Float[Array, "b n 4"], scores: Float[Array, "b n c"]) -> dict[str, Array]:
        """Returns the best detections: a box may be several classes, a class is suppressed by itself alone."""
        real = (jnp.isfinite(corners).all(-1) & jnp.isfinite(scores).all(-1))[..., None]
        candidates = rearrange(jnp.where(real & (scores > self.threshold), scores, -jnp.inf), "b n c -> b c n")

        def best(candidates: Array, corners: Array) -> tuple[Array, Array, Array]:
            return boxes.suppress(candidates, corners[None], OVERLAP, self.most)

        classes, index, scores = jax.vmap(best)(candidates, corners)
        corners = jnp.take_along_axis(corners, index[..., None], 1)
        valid: Bool[Array, "b most"] = jnp.isfinite(scores) & boxes.nonempty(corners)
        return {"boxes": corners, "scores": scores, "classes": classes, "valid": valid, "proposals": index}
