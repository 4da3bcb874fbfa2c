"""Reads DINOv2-like vision transformers in ONNX files: the state dict and sizes that Hugging Face has for them.

Only the tables of the file are read; no graph is run. What is behind the transformer, such as a head, is left.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prismer_jax.errors import UserError

# torch.onnx keeps the names of a module's parameters, but for kernels of linear layers, which become constants
# [in, out] of MatMul nodes, and for tables that it computes while it exports.
_EXPORTER = "onnx::"
_MODULES = r"embeddings\..*|encoder\.layer\..*|layernorm\..*"  # of transformers' Dinov2Model
HEAD_DIM = 64  # channels of a head, in all sizes of DINOv2 (arXiv 2304.07193, table 17)
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB / 255, ImageNet's, which it expects


class Dinov2(Mapping[str, np.ndarray]):
    """The state dict of an ONNX file: read-only arrays under the keys of transformers' Dinov2Model.

    Attributes:
      config: what config.json says of such a model.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens a file.

        Raises:
          UserError: it is no ONNX file of a DINOv2 as torch.onnx writes it; or the package is missing.
        """
        try:
            import onnx
        except ImportError:
            raise UserError(f"{path}: pip install 'prismer_jax[onnx]' reads ONNX files.") from None
        try:
            graph = onnx.load_model(path).graph
        except Exception as error:  # of many kinds
            raise UserError(f"{path}: not an ONNX file that can be read ({error}). Fetch it again.") from None
        tables = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            kernels = [tables[name] for name in node.input if name.startswith(_EXPORTER) and name in tables]
            if node.op_type == "MatMul" and len(kernels) == 1:  # '/backbone/encoder/layer.0/mlp/fc1/MatMul'
                tables[node.name.strip("/").rpartition("/")[0].replace("/", ".") + ".weight"] = kernels[0].T
        # In front of Dinov2Model's keys stands the name that a larger model has for it, such as 'backbone.'.
        matches = {name: re.search(rf"(?:^|\.)({_MODULES})$", name) for name in tables}
        self._tables = {match[1]: tables[name] for name, match in matches.items() if match}
        self._path = path
        self._tables["embeddings.position_embeddings"] = self._positions(tables)
        kernel = self._table("embeddings.patch_embeddings.projection.weight", 4)
        width, layers = kernel.shape[0], {int(key.split(".")[2]) for key in self._tables if key.startswith("encoder.")}
        if width % HEAD_DIM or not layers:
            raise UserError(f"{path}: has {len(layers)} layers of {width} channels, as no DINOv2 has.")
        positions = self._tables["embeddings.position_embeddings"].shape[1] - 1
        self.config = {
            "image_size": int(np.sqrt(positions)) * kernel.shape[2],
            "patch_size": kernel.shape[2],
            "hidden_size": width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": width // HEAD_DIM,
            "intermediate_size": self._table("encoder.layer.0.mlp.fc1.weight", 2).shape[0],
        }

    def __getitem__(self, key: str) -> np.ndarray:
        return self._tables[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def _table(self, key: str, axes: int) -> np.ndarray:
        if key not in self._tables or self._tables[key].ndim != axes:
            raise UserError(f"{self._path}: has no table {key} of {axes} axes; only DINOv2 in ONNX files is read.")
        return self._tables[key]

    def _positions(self, tables: Mapping[str, Any]) -> np.ndarray:
        """Returns [1, 1 + n², d]: the exporter has cut the class token's row, and the grid's rows, apart."""
        width = self._table("embeddings.cls_token", 3).shape[2]
        apart = [array for name, array in tables.items() if name.startswith(_EXPORTER) and array.ndim == 3]
        apart = sorted((array for array in apart if array.shape[::2] == (1, width)), key=lambda array: array.shape[1])
        counts = [array.shape[1] for array in apart]
        if len(apart) != 2 or counts[0] != 1 or int(np.sqrt(counts[1])) ** 2 != counts[1]:
            raise UserError(f"{self._path}: its position embeddings are not one of a class token and a square grid's.")
        return np.concatenate(apart, axis=1)


def normalized(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patch convolution [o, 3, h, w], [o] that takes RGB / 255 where this one took normalised pixels.

    (x - mean) / std is linear, so it goes into the kernel and the bias; there is no padding that it would move.
    """
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    scaled = kernel / std
    return scaled.astype(kernel.dtype), (bias - (scaled * mean).sum((1, 2, 3))).astype(bias.dtype)
