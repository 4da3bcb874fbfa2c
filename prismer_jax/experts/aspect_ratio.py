"""Photos at their own proportions, as detectron2's models see them in NVlabs/prismer: segmentation and detection."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.experts import layers
from prismer_jax.experts.expert import Arrays, Expert
from prismer_jax.typing import Array, Float, Int, Shaped, typed

SHORT, LONG = 479, 480  # sides of the resized photo: the reference's Resize(size=479, max_size=480)
DIVISOR = 32  # of the padded sides: the coarsest feature map has that stride


def fit(height: int, width: int) -> tuple[int, int]:
    """Returns the size of a resized photo: the shorter side 479, unless the longer one would then be beyond 480.

    As torchvision.transforms.Resize computes it, cutting off fractions twice; but where the photo is so narrow that no
    pixel would be left of its shorter side, which torchvision refuses, one is.
    """
    short, long = min(height, width), max(height, width)
    new_short, new_long = SHORT, int(SHORT * long / short)
    if new_long > LONG:
        new_short, new_long = max(int(LONG * new_short / new_long), 1), LONG
    return (new_short, new_long) if height <= width else (new_long, new_short)


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the next multiples of DIVISOR."""
    return (-(-size[0] // DIVISOR) * DIVISOR, -(-size[1] // DIVISOR) * DIVISOR)


@typed
def normalize(
    image: Shaped[Array, "b h w 3"], size: Int[Array, "b 2"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w 3"]:
    """Subtracts the mean, divides by the deviation, and sets to 0 what is not of the photo: all beyond its `size`."""
    inside = [jnp.arange(n) < size[:, axis, None] for axis, n in enumerate(image.shape[1:3])]
    inside = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
    return jnp.where(inside, (image.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std), 0)


class AspectRatioExpert(Expert):
    """An expert that looks at every photo at its own proportions, padded at the bottom and right to a multiple of 32.

    Its batches are {"image": uint8 [b, H, W, 3], "size": int32 [b, 2] (height, width without padding)}. The networks
    see the padding, so every padded size is a shape of its own: at most 29 of them, one for each multiple of 32 of the
    shorter side either way. A photo's label does not depend on those that share its batch.
    """

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return padded(fit(height, width))

    def prepare(self, photo: np.ndarray) -> Arrays:
        size = fit(*photo.shape[:2])
        image = np.zeros((*padded(size), 3), np.uint8)
        image[: size[0], : size[1]] = layers.resize_photo(photo, size)
        return {"image": image, "size": np.asarray(size, np.int32)}

    def init(self, rng: jax.Array) -> dict:
        return self.module.init(rng, jnp.zeros((1, 64, 64, 3)), jnp.full((1, 2), 64))
