"""PyTorch's tensors in pickles: storages that are regions of a file, and views of them, checked with exact integers.

The names and what they are called with are those of torch/_utils.py, torch/storage.py and torch/serialization.py
(PyTorch 2.13), and of torch/csrc/jit/serialization/pickler.cpp for TorchScript.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from prismer_jax.weights.pickled import NAMES, Inert, Malformed, Name, Refused, Visit, quoted, whole
from prismer_jax.weights.unpickle import UNPACKED

# {storage class: type}; the writer's table too.
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}
_DTYPES = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "complex64", "complex128", "bool")},
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
BIG_ENDIAN = "was written on a big-endian machine, which is not read here: save it again on another one"
_QUANTISED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")


def view(
    buffer: np.ndarray, start: int, size: int, dtype: np.dtype, shape: Any, strides: Any = None, offset: Any = 0
) -> np.ndarray:
    """Returns a read-only array on a region of a file, or of bytes unpacked from it.

    Args:
      buffer: the whole file as bytes.
      start, size: the region in it, in bytes.
      dtype, shape: of the array.
      strides, offset: in elements; rows after each other from the start of the region if not given.

    Raises:
      Malformed: any element lies outside of the region, or the arguments make no sense.
      Refused: the array repeats few bytes endlessly.
    """
    if len(shape) > 32 or (strides is not None and len(strides) != len(shape)):
        raise Malformed("a tensor with a wrong number of axes")
    shape, offset = tuple(map(whole, shape)), whole(offset)
    if strides is None:
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    strides = [whole(stride) * (length > 1) for stride, length in zip(strides, shape, strict=True)]
    if math.prod(max(length, 1) for length in shape) * dtype.itemsize >= 1 << 63:
        raise Malformed("a tensor of an absurd shape")
    if not (count := math.prod(shape)):
        return np.ndarray(shape, dtype, buffer)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > size:
        raise Malformed("a tensor reaches beyond its storage")
    if count * dtype.itemsize > max(len(buffer), UNPACKED):
        raise Refused("holds a tensor larger than the file, as only an attack on the memory does")
    in_bytes = [stride * dtype.itemsize for stride in strides]
    return np.ndarray(shape, dtype, buffer, start + offset * dtype.itemsize, in_bytes)


class Storage(Inert):
    """A region of the file, which may be known only when the pickle has been read."""

    def __init__(self, dtype: np.dtype, count: Any) -> None:
        """A storage of `count` elements; `place` says where."""
        self.dtype, self.size = dtype, whole(count) * dtype.itemsize
        self._buffer, self._start = None, 0
        self._root: Storage | None = None

    def place(self, buffer: np.ndarray, start: int, size: int) -> None:
        """Says which bytes of the buffer it is."""
        if size < self.size:
            raise Malformed("a storage is shorter than it should be")
        self._buffer, self._start = buffer, start

    def part(self, offset: Any, count: Any) -> Storage:
        """Returns the storage of `count` elements that begins at the element `offset` of this one."""
        part = Storage(self.dtype, count)
        part._root, part._start = self, whole(offset) * self.dtype.itemsize
        if part._start + part.size > self.size:
            raise Malformed("a storage reaches beyond the one it is a part of")
        return part

    def view(self, dtype: np.dtype, shape: Any, strides: Any, offset: Any) -> np.ndarray:
        """Returns an array on it; see `view`."""
        root = self if self._root is None else self._root
        if root._buffer is None:
            raise Malformed("a storage is missing")
        start = root._start + (self._start if self._root is not None else 0)
        return view(root._buffer, start, self.size, dtype, shape, strides, offset)

    def plain(self, visit: Visit) -> np.ndarray:
        return self.view(self.dtype, (self.size // self.dtype.itemsize,), (1,), 0)


class Tensor(Inert):
    """A view of a storage."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> None:
        if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
            raise Malformed("a tensor without a storage, a shape or strides")
        self._storage, self._dtype = storage, storage.dtype if dtype is None else dtype
        self._layout = (shape, strides, offset)

    def plain(self, visit: Visit) -> np.ndarray:
        return self._storage.view(self._dtype, *self._layout)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """`rest`: whether it requires a gradient, hooks, and the metadata of tensors that are conjugated when used."""
    if len(rest) > 2 and rest[2]:
        raise Refused("holds a tensor that is conjugated or negated when used; save it after .resolve_conj()")
    return Tensor(storage, offset, shape, strides)


def _tensor_of_new_type(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    if not isinstance(dtype, Name) or (known := _DTYPES.get(dtype.text.removeprefix("torch."))) is None or metadata:
        raise Refused("holds a tensor of an unknown dtype; save it as float32")
    return Tensor(storage, offset, shape, strides, known)


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Malformed("a parameter that is no tensor")
    return tensor


def _same(value: Any, *_: Any) -> Any:
    return value


def _device(kind: Any, *index: Any) -> str:
    return ":".join([kind, *(str(whole(i)) for i in index)])


def _size(lengths: Any) -> tuple:
    return tuple(map(whole, lengths))


# What PyTorch's files may name besides NAMES.
TORCH_NAMES: dict[str, Callable[..., Any] | None] = {
    **NAMES,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_new_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.storage.UntypedStorage": None,
    **{f"torch.{name}": None for name in (*_DTYPES, *STORAGES, *_QUANTISED)},
    **{f"torch.cuda.{name}": None for name in STORAGES},
}
# TorchScript says the types of lists and dicts.
TORCHSCRIPT_NAMES = {
    **TORCH_NAMES,
    "torch.jit._pickle.restore_type_tag": _same,
    **{f"torch.jit._pickle.build_{kind}list": _same for kind in ("int", "double", "bool", "tensor")},
}


def name_of_storage(name: Any) -> str:
    """Returns a storage's name if it is one."""
    if type(name) is not str:
        raise Malformed("a storage without a name")
    return name


def storage_type(name: Any) -> np.dtype:
    """Returns the type of a storage from its class, a `Name`; bytes if it says none."""
    if not isinstance(name, Name):
        raise Malformed("a storage of no type")
    kind = name.text.rpartition(".")[2]
    if kind == "UntypedStorage":
        return np.dtype(np.uint8)
    if kind not in STORAGES:
        raise Refused(f"holds tensors of the unknown dtype {quoted(name.text)}; save them as float32")
    return STORAGES[kind]
