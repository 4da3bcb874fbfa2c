"""Mask2Former (arXiv 2112.01527) with a Swin backbone: a photo becomes masks, each with a class.

There is no custom operator: deformable attention is a few gathers (`deformable_attention`). Source of what the paper
leaves open: NVlabs/prismer, experts/segmentation/mask2former/maskformer_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.experts import aspect_ratio
from prismer_jax.experts.segmentation import mask_decoder, pixel_decoder, swin
from prismer_jax.typing import Array, Float, Int, Shaped, typed
from prismer_jax.weights import rules

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's red, green, blue


class Mask2Former(nn.Module):
    """The network. Its defaults are the sizes of the official panoptic models with Swin-L.

    Attributes:
      classes: without "no object".
      backbone: fields of Swin.
      pixels: fields of PixelDecoder.
      decoder: fields of MaskDecoder.
    """

    classes: int
    backbone: Mapping[str, Any] = FrozenDict()
    pixels: Mapping[str, Any] = FrozenDict()
    decoder: Mapping[str, Any] = FrozenDict()
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(
        self, image: Shaped[Array, "b h w 3"], size: Int[Array, "b 2"]
    ) -> tuple[Float[Array, "b q {self.classes}+1"], Float[Array, "b h//4 w//4 q"]]:
        """Returns logits of the classes of each query, "no object" last, and of its mask.

        Args:
          image: 0..255, padded at the bottom and right to multiples of 32.
          size: (height, width) of each photo without padding. The network takes the padding for part of the photo.
        """
        if any(side % aspect_ratio.DIVISOR for side in image.shape[1:3]):
            raise ValueError(f"the sides {image.shape[1:3]} must be multiples of {aspect_ratio.DIVISOR}")
        x = aspect_ratio.normalize(image, size, MEAN, STD)
        features = swin.Swin(dtype=self.dtype, name="backbone", **self.backbone)(x)
        mask_features, maps = pixel_decoder.PixelDecoder(name="pixel_decoder", **self.pixels)(features)
        decoder = mask_decoder.MaskDecoder(self.classes, dtype=self.dtype, name="decoder", **self.decoder)
        return decoder(mask_features, maps)


@typed
def semantic(
    logits: Float[Array, "b q c"], masks: Float[Array, "b h w q"], size: tuple[int, int]
) -> Float[Array, "b H W _"]:
    """Returns how much every class is where, [b, H, W, c - 1]: masks at `size` weighted with their classes.

    No class is removed but "no object", and no query is left out.
    """
    masks = jax.nn.sigmoid(pixel_decoder.resize(masks, size))
    return jnp.einsum("bhwq,bqc->bhwc", masks, jax.nn.softmax(logits)[..., :-1])


_BLOCK = "backbone.layers.{}.blocks.{{}}.attn.relative_position_index"

TABLE = rules.Table(
    rules=(
        *swin.rules_of("backbone", "backbone"),
        *pixel_decoder.rules_of("sem_seg_head.pixel_decoder", "pixel_decoder"),
        *mask_decoder.rules_of("sem_seg_head.predictor", "decoder"),
    ),
    constants={
        _BLOCK.format(i): (f"params/backbone/stage_{i}/bias_table", swin.index_of_table) for i in range(swin.STAGES)
    },
    spellings=(
        # The published files are older than these names.
        (r"\.static_query\.", ".query_feat."),
        (r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", "sem_seg_head.pixel_decoder."),
    ),
    ignored=(r"criterion\.empty_weight",),  # weights of the classes in the training loss
)
