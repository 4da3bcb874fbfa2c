"""Surface normals of every pixel: NLL-AngMF (Bae et al., arXiv 2109.09881), trained on ScanNet.

An EfficientNet and a decoder estimate normals at an eighth of the photo's size; three small networks, applied to every
pixel, refine them at twice the size each. Sources of the architecture: NVlabs/prismer, experts/normal/models/NNET.py
and submodules/{encoder,decoder,submodules}.py (the branch of mode 'test'); of the labels: experts/generate_normal.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax.experts import efficientnet, layers
from prismer_jax.experts.convolution import ConvNorm
from prismer_jax.experts.expert import Label, SquareExpert
from prismer_jax.towers.stem import resize
from prismer_jax.typing import Array, Float, UInt8, typed
from prismer_jax.weights import modules, rules
from prismer_jax.weights.rules import Rule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
WIDTHS = (1024, 512, 256, 128)  # of the decoder, coarse to fine
HIDDEN = 128  # of the networks that refine
MIN_KAPPA = 0.01


class Up(nn.Module):
    """Brings a map to the size of a finer one and convolves both together."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], finer: Float[Array, "b H W d"]) -> Float[Array, "b H W e"]:
        x = jnp.concatenate([resize(x, finer.shape[1:3]), finer], axis=-1)
        for name in ("first", "second"):
            x = jax.nn.leaky_relu(ConvNorm(self.features, 3, 1, 1, dtype=self.dtype, name=name)(x), 0.01)
        return x


class Refine(nn.Module):
    """Normals at twice the size: a network applied to every pixel of the enlarged features and normals."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], coarse: Float[Array, "b h w 4"]) -> Float[Array, "b 2*h 2*w 4"]:
        x = jnp.concatenate([x, coarse.astype(x.dtype)], axis=-1)
        for i in range(3):
            x = nn.Conv(HIDDEN, (1,), dtype=self.dtype, name=f"hidden_{i}")(x)
            if i == 0:
                # The reference enlarges first. Both are linear, and the weights of the four neighbours sum to one, so
                # that even the bias may go first, at a quarter of the cost.
                x = resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            x = jax.nn.relu(x)
        return directions(nn.Conv(4, (1,), dtype=self.dtype, name="out")(x))


@typed
def directions(x: Float[Array, "b h w 4"]) -> Float[Array, "b h w 4"]:
    """Returns unit normals (right, up, towards the camera) and their concentration kappa > 0, in float32."""
    x = x.astype(jnp.float32)
    normal, kappa = x[..., :3], x[..., 3:]
    length = jnp.sqrt(jnp.square(normal).sum(-1, keepdims=True)) + 1e-10
    return jnp.concatenate([normal / length, jax.nn.elu(kappa) + 1 + MIN_KAPPA], axis=-1)


class NNET(nn.Module):
    """The network. It takes photos normalised as ImageNet's, whose sides are multiples of 32."""

    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, image: Float[Array, "b h w 3"]) -> list[Array]:
        """Returns normals and kappa float32 [b, H, W, 4] at 1/8, 1/4, 1/2 and the whole of the image's size."""
        # In float32 whatever the dtype: with the encoder in bfloat16 too, labels move by 1.3 to 10 levels of 255 on
        # average (golden weights, three photos), without it by 0.4 to 0.6. It has a tenth of the multiplications.
        *finer, x = (y.astype(self.dtype) for y in efficientnet.EfficientNet(name="encoder")(image))
        x = nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="bottom")(x)
        maps = []
        for i, (width, skip) in enumerate(zip(WIDTHS, reversed(finer), strict=True), start=1):
            x = Up(width, self.dtype, name=f"up_{i}")(x, skip)
            self.sow("intermediates", f"x_d{i}", x)
            maps.append(x)
        estimates = [directions(nn.Conv(4, (3, 3), padding=1, dtype=self.dtype, name="estimate")(maps[1]))]
        for i, x in enumerate(maps[1:]):
            estimates.append(Refine(self.dtype, name=f"refine_{i}")(x, estimates[-1]))
        return estimates


def _up(key: str, name: str) -> list[Rule]:
    return [
        rule
        for i, part in ((0, "first"), (3, "second"))
        for rule in (
            *modules.conv(f"{key}._net.{i}", f"{name}/{part}/conv"),
            *modules.batch_norm(f"{key}._net.{i + 1}", f"{name}/{part}/norm"),
        )
    ]


def _refine(key: str, name: str) -> list[Rule]:
    return [
        rule
        for i, part in enumerate(("hidden_0", "hidden_1", "hidden_2", "out"))
        for rule in (
            Rule(f"{key}.{2 * i}.weight", (f"params/{name}/{part}/kernel",), "conv1d"),
            Rule(f"{key}.{2 * i}.bias", (f"params/{name}/{part}/bias",)),
        )
    ]


class Normal(SquareExpert):
    """The components of unit normals, -1 to 1, as the three colours."""

    name, file = "normal", "scannet.pt"
    network = NNET
    table = rules.Table(
        rules=(
            *efficientnet.table_rows("encoder.original_model", "encoder"),
            *modules.conv("decoder.conv2", "bottom"),
            *(rule for i in range(1, 5) for rule in _up(f"decoder.up{i}", f"up_{i}")),
            *modules.conv("decoder.out_conv_res8", "estimate"),
            *(
                rule
                for i, size in enumerate((4, 2, 1))
                for rule in _refine(f"decoder.out_conv_res{size}", f"refine_{i}")
            ),
        ),
        ignored=(r"encoder\.original_model\.bn2\..*",),  # after the last map that the decoder takes
    )

    @staticmethod
    @typed
    def normalize(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        mean, std = (np.asarray(values, np.float32) for values in (MEAN, STD))
        return (image.astype(jnp.float32) / 255 - mean) / std

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {"normal": colours(self.module.apply(variables, self.normalize(batch["image"]))[-1])}

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        return Label(layers.to_bytes(layers.resize_map(output["normal"], size)))


@typed
def colours(estimate: Float[Array, "b h w 4"]) -> Float[Array, "b h w 3"]:
    """Normals in [0, 1], without kappa."""
    return jnp.clip((estimate[..., :3] + 1) * 0.5, 0, 1)
