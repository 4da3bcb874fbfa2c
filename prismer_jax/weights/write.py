"""Writes state dicts for other programs, without PyTorch: its zip format and safetensors, whole or not at all.

A file is a function of the names, arrays and their order alone, so that equal weights give equal checksums. Formats as
in torch/serialization.py and caffe2/serialize/inline_container.cc (PyTorch 2.13) and in
github.com/huggingface/safetensors (README, 'Format').
"""

from __future__ import annotations

import contextlib
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.weights.classes import SAFETENSORS, STORAGES

_ALIGNMENT = 64  # bytes; PyTorch's own, so that it can map the tensors
_ROOT = "archive"  # the folder in the zip file
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_SAFETENSORS_OF = {dtype: name for name, dtype in SAFETENSORS.items()}


def torch_file(path: storage.PathLike, state: Mapping[str, Any]) -> None:
    """Writes a zip file that torch.load(path, weights_only=True) reads as an OrderedDict of contiguous CPU tensors.

    Args:
      path: replaced if it exists.
      state: {key: array}; in place of an array also a text, a number, or a dict of these, which is read as such. Keys
        whose array is the same memory share a storage, as tied parameters do.

    Raises:
      UserError: PyTorch has no such type, or the file cannot be written; then nothing is left.
    """
    arrays = _arrays(path, dict(_leaves(state)), _STORAGE_OF)
    storages: dict[Any, int] = {}
    numbers = [storages.setdefault(_memory(key, array), len(storages)) for key, array in arrays.items()]
    first = dict(zip(reversed(numbers), reversed(arrays.values()), strict=True))  # {storage: array}
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _member(archive, "data.pkl", _pickled(state, zip(arrays.values(), numbers, strict=True)))
        _member(archive, "byteorder", b"little")
        for number in range(len(storages)):
            _member(archive, f"data/{number}", _bytes(first[number]))
        _member(archive, "version", b"3\n")


def safetensors_file(
    path: storage.PathLike, state: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file. Tied parameters are written once for every key: the format knows no sharing.

    Args:
      path: replaced if it exists.
      state: {key: array}; no key may be '__metadata__'.
      metadata: of the header, instead of PyTorch's mark.

    Raises:
      UserError: the format has no such type, or the file cannot be written; then nothing is left.
    """
    arrays = _arrays(path, state, _SAFETENSORS_OF)
    # The largest types first: then every array is aligned.
    order = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    end = 0
    for key in order:
        array, start, end = arrays[key], end, end + arrays[key].nbytes
        header[key] = {"dtype": _name(array, _SAFETENSORS_OF), "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(_bytes(arrays[key]))


def _arrays(path: Any, state: Mapping[str, Any], types: Mapping[np.dtype, str]) -> dict[str, np.ndarray]:
    arrays = {key: np.asarray(value) for key, value in state.items()}
    for key, array in arrays.items():
        if _name(array, types) is None:
            raise UserError(f"{path}: {key!r} is of type {array.dtype}, which the format lacks. Cast it to float32.")
    return arrays


def _name(array: np.ndarray, types: Mapping[np.dtype, str]) -> str | None:
    return types.get(array.dtype.newbyteorder("="))


def _bytes(array: np.ndarray) -> memoryview:
    """Returns the array's elements in C order, little-endian; a copy of this one array if it is not stored so."""
    little = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, little).reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def replacing(path: storage.PathLike) -> Iterator[BinaryIO]:
    """Yields a file to write, which takes the place of `path` as by `storage.replacing`; errors name the remedy."""
    try:
        with storage.replacing(path) as name, open(name, "wb") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). Make space, or choose another folder."
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's zip file
# ---------------------------------------------------------------------------------------------------------------------


def _memory(key: str, array: np.ndarray) -> Any:
    """Returns what two arrays have in common if they are the same memory read the same way."""
    address = array.__array_interface__["data"][0]
    return (address, array.dtype, array.shape, array.strides) if array.size else key


def _member(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Writes a member, its bytes at a multiple of _ALIGNMENT: a field 'FB' in its header is as long as that takes."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980
    info.create_system = 3  # the same on every system
    large = len(data) > zipfile.ZIP64_LIMIT // 2
    header = 30 + len(info.filename) + (20 if large else 0) + 4
    padding = -(archive.fp.tell() + header) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as file:
        file.write(data)


def _leaves(tree: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (key, array) of all arrays, in order; keys of nested dicts are joined by '/'."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}{key}/")
        elif not isinstance(value, str | int):
            yield f"{place}{key}", value


def _pickled(state: Mapping[Any, Any], tensors: Iterator[tuple[np.ndarray, int]]) -> bytes:
    """Returns the pickle, protocol 2, of an OrderedDict: what torch.save writes, without its memo.

    Args:
      state: what `torch_file` takes.
      tensors: its arrays in order, each with the number of its storage.
    """

    def tensor(array: np.ndarray, position: int) -> bytes:
        kind = b"ctorch\n%s\n" % _name(array, _STORAGE_OF).encode()
        place = b"(" + _text("storage") + kind + _text(str(position)) + _text("cpu") + _int(array.size) + b"tQ"
        strides = [max(1, int(np.prod(array.shape[axis + 1 :]))) for axis in range(array.ndim)]
        layout = _int(0) + _ints(array.shape) + _ints(strides)
        # Requires no gradient, and has no hooks.
        rest = b"\x89ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + layout + rest + b"tR"

    def items(tree: Mapping[Any, Any]) -> bytes:
        return b"(" + b"".join(value(key) + value(item) for key, item in tree.items()) + b"u"

    def value(item: Any) -> bytes:
        match item:
            case Mapping():
                return b"}" + items(item)
            case str():
                return _text(item)
            case int():
                return _int(item)
            case _:
                return tensor(*next(tensors))

    return b"\x80\x02ccollections\nOrderedDict\n)R" + items(state) + b"."


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _ints(numbers: Any) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"
