"""Semantic segmentation: Mask2Former with the classes of COCO and of ADE20K, as NVlabs/prismer runs it.

Source: NVlabs/prismer, experts/model_bank.py, experts/generate_segmentation.py, experts/segmentation/. There a batch is
padded to its largest photo, so that a label depends on those beside it; here every photo is padded to its own next
multiple of 32. No pixel is ever left without a class.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.experts.aspect_ratio import AspectRatioExpert
from prismer_jax.experts.expert import Label, compiled
from prismer_jax.experts.segmentation import mask2former
from prismer_jax.experts.segmentation.panoptic import Panoptic, confident, panoptic
from prismer_jax.labels import EXPERTS
from prismer_jax.typing import Float, UInt8, typed

# Source: NVlabs/prismer, experts/segmentation/mask2former/data/datasets/register_ade20k_panoptic.py.
# fmt: off
ADE_STUFF = frozenset({
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
})
# fmt: on
STRIP = 2**16  # numbers of a resized map that are made at once


class Segmentation(AspectRatioExpert):
    """The class of every pixel.

    Attributes:
      things: ids of the classes whose objects are counted; the others are stuff.
    """

    network = mask2former.Mask2Former
    table = mask2former.TABLE
    things: ClassVar[frozenset[int]]

    def __init__(self, dtype: Any = jnp.float32, **sizes: Any) -> None:
        super().__init__(dtype, **{"classes": EXPERTS[self.name].num_classes, **sizes})

    def logits(self, variables: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns logits of the classes [b, q, c + 1] and of the masks [b, H/4, W/4, q] of a batch of photos.

        The network gets blue, green, red, although the mean that it subtracts and the weights are for red, green, blue:
        so the reference makes its labels.
        """
        return self.module.apply(variables, batch["image"][..., ::-1], batch["size"])

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        size = batch["image"].shape[1:3]
        return {"scores": mask2former.semantic(*self.logits(variables, batch), size), "size": batch["size"]}

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        inside = tuple(output["size"].tolist())
        classes = [strip.argmax(-1).astype(np.uint8) for strip in strips(output["scores"], inside, size)]
        return Label(np.concatenate(classes)[..., None])

    @typed
    def panoptic(self, photo: UInt8[np.ndarray, "h w 3"], variables: Any) -> Panoptic:
        """Segments a photo into things and stuff.

        The labels for Prismer are not made of this. The network gets red, green, blue, as it was trained.
        """
        prepared = self.prepare(photo)
        logits, masks = jax.device_get(self._network(variables, prepared["image"][None], prepared["size"][None]))
        chosen = confident(logits[0])
        masks = np.concatenate(list(strips(masks[0][..., chosen], masks.shape[1:3], prepared["image"].shape[:2])))
        masks = np.concatenate(list(strips(masks, tuple(prepared["size"].tolist()), photo.shape[:2])))
        return panoptic(logits[0][chosen], masks, self.things)

    @functools.cached_property
    def _network(self) -> Any:
        return compiled(self.module.apply)


@typed
def strips(
    x: Float[np.ndarray, "h w c"], inside: tuple[int, int], size: tuple[int, int]
) -> Iterator[Float[np.ndarray, "_ W c"]]:
    """Resizes the first `inside` rows and columns of a map to (H, W), a few rows at a time.

    Bilinearly, with half-pixel centres and clamped borders. All of a large photo's 133 channels would not fit in
    memory, and what fits in a processor's cache is done soonest.
    """
    rows, columns = (taps(*lengths) for lengths in zip(inside, size, strict=True))
    step = max(STRIP // max(size[1] * x.shape[2], 1), 1)
    for i in range(0, size[0], step):
        yield mix(mix(x, [tap[i : i + step] for tap in rows], 0), columns, 1)


def taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which two pixels of one axis make each new one, and the share of the second."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = at.astype(int)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def mix(x: np.ndarray, taps: Sequence[np.ndarray], axis: int) -> np.ndarray:
    low, high, share = taps
    out, other = x.take(low, axis), x.take(high, axis)
    other -= out
    other *= share.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    out += other
    return out


class SegCoco(Segmentation):
    """COCO's 80 things and 53 kinds of stuff."""

    name, file = "seg_coco", "model_final_f07440.pkl"
    things = frozenset(range(80))


class SegAde(Segmentation):
    """ADE20K's 100 things and 50 kinds of stuff, mixed."""

    name, file = "seg_ade", "model_final_e0c58e.pkl"
    things = frozenset(range(150)) - ADE_STUFF
