"""The codec of masks: 64 x 64 pixels as sixteen of 128 codes, a vector-quantised autoencoder (Ning et al., 2301.02229).

Preprocessing encodes masks in worker processes, which have no jax: the layers are written once, over a convolution that
is NumPy's here, and XLA's where a codec is trained (training/mask_codec.py). Weights lie in PaliGemma's file
`vae-oid.npz`, under the names and in the shapes that PyTorch gave them; a codec that is trained here is such a file,
too, perhaps of fewer channels.

Source: google-research/big_vision, pp/proj/paligemma/segmentation.py and evaluators/proj/paligemma/transfers/
segmentation.py; SwinTransformer/AiT, vae/models/VQVAE.py.
"""

from __future__ import annotations

import functools
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.objects.shapes import SIDE
from prismer_jax.objects.spelling import CODES, TOKENS

GRID = 4  # codes a side
HALVINGS = 4  # 64 -> 4 pixels
BLOCKS = 2
EMBEDDING = "_vq_vae._embedding"
FILE = "mask_codec.npz"  # beside a model's other files

Weights = Mapping[str, Any]
# (x [n, h, w, in], kernel [out, in, k, k], bias, stride, zeros around) -> [n, h, w, out]
Convolution = Callable[..., Any]


def convolution(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int = 1, pad: int = 0) -> np.ndarray:
    """Returns a convolution as a matrix product."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(windows, kernel, axes=((3, 4, 5), (1, 2, 3))) + bias


def features(weights: Weights, masks: Any, conv: Convolution = convolution) -> Any:
    """Returns what is nearest to codes, [n, 4, 4, dim], of masks [n, 64, 64] in [0, 1]."""
    x = 2 * (masks[..., None] - 0.5)
    for layer in range(HALVINGS):
        x = conv(x, *_layer(weights, f"encoder.{2 * layer}"), stride=2, pad=1).clip(0)
    for block in range(BLOCKS):
        x = _block(weights, f"encoder.{2 * HALVINGS + block}", x, conv)
    return conv(x, *_layer(weights, f"encoder.{2 * HALVINGS + BLOCKS}"))


def nearest(weights: Weights, x: Any) -> Any:
    """Returns the codes [...] whose embeddings are nearest to x [..., dim]."""
    table = weights[EMBEDDING]
    return ((table**2).sum(1) - 2 * x @ table.T).argmin(-1)


def painted(weights: Weights, embedded: Any, conv: Convolution = convolution) -> Any:
    """Returns masks [n, 64, 64], about -1 outside and 1 inside, of embeddings [n, 4, 4, dim]."""
    x = conv(embedded, *_layer(weights, "decoder.0")).clip(0)
    for block in range(BLOCKS):
        x = _block(weights, f"decoder.{2 + block}", x, conv)
    for layer in range(HALVINGS):
        x = transposed(x, *_layer(weights, f"decoder.{2 + BLOCKS + 2 * layer}"), conv).clip(0)
    return conv(x, *_layer(weights, f"decoder.{2 + BLOCKS + 2 * HALVINGS}"))[..., 0]


def transposed(x: Any, kernel: Any, bias: Any, conv: Convolution = convolution) -> Any:
    """Returns PyTorch's ConvTranspose2d with padding 1 and stride 2: [n, 2h, 2w, out] of x [n, h, w, in].

    Each pixel becomes four, of which each is a convolution of its own over x: of the kernel's four rows an upper pixel
    has 3 and 1, on the row above and on its own, a lower one 2 and 0, on its own and on the row below; so do columns.

    Args:
      kernel: [in, out, 4, 4].
    """
    rows, there = np.array([[3, 1, 0], [0, 2, 0]]), np.array([[1, 1, 0], [0, 1, 1]], np.float32)
    parts = kernel[:, :, rows][..., rows] * there[:, :, None, None] * there  # [in, out, 2, 3, 2, 3]
    old, new = kernel.shape[:2]
    x = conv(x, parts.transpose(2, 4, 1, 0, 3, 5).reshape(4 * new, old, 3, 3), 0, pad=1)
    n, height, width, _ = x.shape
    x = x.reshape(n, height, width, 2, 2, new).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * height, 2 * width, new) + bias


def _block(weights: Weights, name: str, x: Any, conv: Convolution) -> Any:
    y = conv(x, *_layer(weights, f"{name}.net.0"), pad=1).clip(0)
    y = conv(y, *_layer(weights, f"{name}.net.2"), pad=1).clip(0)
    return x + conv(y, *_layer(weights, f"{name}.net.4"))


def _layer(weights: Weights, name: str) -> tuple[Any, Any]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def shapes(width: int = 128, dim: int = 512) -> dict[str, tuple[int, ...]]:
    """Returns {key: shape} of a codec; those of the published one by default.

    Args:
      width: channels inside, of which the outer layers have a half, a quarter, an eighth; a multiple of 8.
      dim: of an embedding.
    """
    steps = [width >> (HALVINGS - 1 - layer) for layer in range(HALVINGS)]  # 16, 32, 64, 128
    kernels = {}
    for layer, (old, new) in enumerate(zip([1, *steps], steps, strict=False)):
        kernels[f"encoder.{2 * layer}"] = (new, old, 4, 4)
    kernels[f"encoder.{2 * HALVINGS + BLOCKS}"] = (dim, width, 1, 1)
    kernels["decoder.0"] = (width, dim, 1, 1)
    for layer, (old, new) in enumerate(zip([width, *steps[::-1]], steps[::-1], strict=False)):
        kernels[f"decoder.{2 + BLOCKS + 2 * layer}"] = (old, new, 4, 4)
    kernels[f"decoder.{2 + BLOCKS + 2 * HALVINGS}"] = (1, steps[0], 1, 1)
    for block in range(BLOCKS):
        for name in (f"encoder.{2 * HALVINGS + block}", f"decoder.{2 + block}"):
            kernels |= {f"{name}.net.{n}": (width, width, k, k) for n, k in ((0, 3), (2, 3), (4, 1))}
    upwards = [f"decoder.{2 + BLOCKS + 2 * layer}" for layer in range(HALVINGS)]  # whose kernels are [in, out, ...]
    biases = {f"{name}.bias": (shape[name in upwards],) for name, shape in kernels.items()}
    return {f"{name}.weight": shape for name, shape in kernels.items()} | biases | {EMBEDDING: (CODES, dim)}


class MaskCodec:
    """A trained codec.

    Attributes:
      weights: {key: float32 array}, as in the file.
    """

    def __init__(self, weights: Weights, where: str = "these weights") -> None:
        """Raises UserError if weights lack a key or have one of another shape; `where` is what they are called."""
        table = np.shape(weights.get(EMBEDDING, ()))
        width = np.shape(weights.get("decoder.0.weight", ()))[:1]
        if len(table) != 2 or table[0] != CODES or not width or width[0] % 8:
            raise UserError(f"{where}: is no codec of masks: it has no {EMBEDDING} of {CODES} codes. Give vae-oid.npz.")
        expected = shapes(width[0], table[1])
        wrong = sorted(key for key, shape in expected.items() if np.shape(weights.get(key)) != shape)
        if wrong or (wrong := sorted(weights.keys() - expected.keys())):
            raise UserError(f"{where}: is no codec of masks: {wrong[0]} is missing, of another shape or too many.")
        self.weights = {key: np.asarray(weights[key], np.float32) for key in expected}

    def encode(self, masks: np.ndarray) -> np.ndarray:
        """Returns codes int32 [n, 16] of masks [n, 64, 64] in [0, 1]."""
        vectors = features(self.weights, np.asarray(masks, np.float32))
        return nearest(self.weights, vectors).reshape(len(masks), TOKENS).astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Returns float32 [n, 64, 64], positive inside, of codes [n, 16]."""
        embedded = self.weights[EMBEDDING][np.asarray(codes, np.int64)]
        return painted(self.weights, embedded.reshape(len(embedded), GRID, GRID, -1))

    def save(self, path: storage.PathLike) -> None:
        """Writes the file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.weights)
        storage.write(path, buffer.getvalue())


@functools.lru_cache(maxsize=4)
def load(path: str) -> MaskCodec:
    """Returns the codec of a file, such as PaliGemma's `vae-oid.npz`. Nothing in it is executed.

    Raises:
      UserError: there is no such file, or it is no codec.
    """
    path = os.fspath(storage.on_disk(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give the codec of masks, vae-oid.npz, or train one.") from None
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is no .npz of arrays ({error}). Give the codec of masks, vae-oid.npz.") from None
    return MaskCodec(weights, path)


assert SIDE == GRID << HALVINGS
assert TOKENS == GRID * GRID
