"""Reads files of weights without PyTorch and without executing anything in them, as views of the mapped file.

`load` reads a state dict, `load_tree` whatever plain data a file holds. What a file is, its contents say, not its name:

  PyTorch's zip files (1.6 and later), TorchScript archives among them; PyTorch's older files; pickles of NumPy arrays,
  as detectron2 writes them, by Python 2 or 3; safetensors; .npz.

Arrays are read-only and, but for compressed zip members and pickles in protocols 0 to 2, views of one np.memmap: little
more than the names is read. A bit that flipped in an array is not noticed; compare the file's checksum for that.
Formats as in torch/serialization.py, github.com/huggingface/safetensors (README, 'Format') and numpy.lib.format.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.weights.archive import Module, Part, read_zip, state_of
from prismer_jax.weights.pickled import Malformed, Refused, Truncated, quoted, whole
from prismer_jax.weights.tensors import BIG_ENDIAN, TORCH_NAMES, Storage, name_of_storage, storage_type, view
from prismer_jax.weights.unpickle import Machine

NESTS = ("model", "state_dict")  # where training programs put the state dict beside optimiser and epoch
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_HEADER = 100_000_000  # bytes, the format's own limit
_MAGIC = 0x1950A86A20F9469CFC6C  # the first of four pickles in PyTorch's older files

# What a download that went wrong, or another file by mistake, begins with.
_MISTAKEN = (
    (rb"\s*<(!doctype|html|head|\?xml)", "is a web page, not weights: the server answered with a message"),
    (rb"version https://git-lfs", "is a Git-LFS pointer, not the weights themselves: run `git lfs pull` where it lies"),
    (rb"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, which is not read here: find the PyTorch version of these weights"),
    (rb".{257}ustar", "is a tar archive: unpack it, or if PyTorch before 0.1.10 wrote it, save it with a newer one"),
    (rb"\s*\{\s*\"", "is a JSON file, not weights"),
)


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Where the file holds a dict with exactly one of the dicts 'model' and 'state_dict' (NESTS) in it, that one is the
    state dict, and the rest is left, such as the optimiser's state or options: objects of unknown classes may stand
    there. Of a TorchScript archive, the parameters and buffers of its modules are read, under the keys that their state
    dict has.

    Args:
      path: the file.

    Returns:
      {key: read-only array}; bfloat16 and float8 are the types of ml_dtypes.

    Raises:
      UserError: the file is missing, damaged, no file of weights, or holds something else; the message says the remedy.
    """
    path = pathlib.Path(path)
    tree = _read(path, (), _nested)
    if isinstance(tree, Module):
        tree = dict(state_of(tree, tree.declared))
    if not isinstance(tree, dict) or not tree:
        kind = f"a {type(tree).__name__}" if not isinstance(tree, dict) else "nothing"
        raise UserError(f"{path}: holds {kind} instead of a state dict. Save torch.save(model.state_dict(), FILE).")
    if others := [key for key, value in tree.items() if type(key) is not str or not isinstance(value, np.ndarray)]:
        listed = ", ".join(f"{_shown(key)} ({type(tree[key]).__name__})" for key in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise UserError(
            f"{path}: is no state dict: {listed}{more} are no arrays. Save the state dict alone, or under one of the "
            f"keys {', '.join(NESTS)}."
        )
    return tree


def load_tree(path: str | os.PathLike[str], records: Collection[str] = ()) -> Any:
    """Reads whatever plain data a file holds: nested dicts, lists, tuples, sets, numbers, strings, bytes, None, arrays.

    Args:
      path: the file.
      records: full names of classes ('sklearn.decomposition._pca.PCA') whose objects are read as the dicts of their
        attributes; the class is not imported.

    Returns:
      The data. Classes and functions that may stand in it are given as their names, and a str of Python 2 as bytes if
      it has 256 characters or more: only its reader can know which it was.

    Raises:
      UserError: as `load`.
    """
    return _read(pathlib.Path(path), records, lambda tree: tree)


def _read(path: pathlib.Path, records: Collection[str], part: Part) -> Any:
    with _explained(path):
        data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size and path.is_file() else np.empty(0, np.uint8)
        start = bytes(data[:512])
        if not start:
            raise Refused("is a folder: give a file in it" if path.is_dir() else "is empty: download it again")
        # First, because its first two bytes are a length, and so may be those of anything.
        if start[8:9] == b"{" and (length := int.from_bytes(start[:8], "little")) <= _HEADER:
            return _read_safetensors(data, length)
        for pattern, problem in _MISTAKEN:
            if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
                raise Refused(problem)
        if start[:2] == b"PK":
            return read_zip(path, data, records, part)
        if start[:1] in (b"\x80", b"(", b"c", b"}", b"]"):
            return _read_pickle(data, records, part)
        raise Refused(f"begins with {start[:8]!r}, as no file of weights does: check that it is the right one")


def _nested(tree: Any) -> Any:
    """The state dict in what a training program saved, or everything."""
    nests = [key for key in NESTS if isinstance(tree, dict) and isinstance(tree.get(key), dict)]
    if len(nests) > 1:
        raise Refused(f"holds both {' and '.join(nests)}. Save the one that is wanted alone")
    return tree[nests[0]] if nests else tree


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Truncated as error:
        raise UserError(f"{path}: is cut short: {error}. Download it again.") from None
    except Malformed as error:
        raise UserError(f"{path}: is damaged: {error}. Download it again and compare its checksum.") from None
    except Refused as error:
        raise UserError(f"{path}: {error}.") from None
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist. Check the name, or fetch it with python -m tools.download.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _shown(key: Any) -> str:
    return quoted(key) if type(key) is str else type(key).__name__


# ---------------------------------------------------------------------------------------------------------------------
# Pickles, and PyTorch's older files, which are pickles one after the other and then the storages
# ---------------------------------------------------------------------------------------------------------------------


def _read_pickle(data: np.ndarray, records: Collection[str], part: Part) -> Any:
    machine = Machine(data, records=records.__contains__)
    first = machine.run()
    if type(first) is int and first == _MAGIC:
        return _read_older(data, machine.end, records, part)
    return machine.plain(part(first))


def _read_older(data: np.ndarray, start: int, records: Collection[str], part: Part) -> Any:
    storages: dict[str, Storage] = {}

    def storage(key: Any) -> Storage:
        _, kind, name, _, count, view_of = key  # 'storage', class, name, device, elements, which of them are meant
        found = storages.setdefault(name_of_storage(name), Storage(storage_type(kind), count))
        return found if view_of is None else found.part(*view_of[1:])

    version = Machine(data, start=start)
    version.run()
    system = Machine(data, start=version.end)
    facts = system.run()
    if type(facts) is not dict or type(facts.get("little_endian")) is not bool:
        raise Malformed("it does not say on what machine it was written")
    if not facts["little_endian"]:
        raise Refused(BIG_ENDIAN)
    contents = Machine(data, TORCH_NAMES, records=records.__contains__, persistent=storage, start=system.end)
    tree = contents.run()
    order = Machine(data, start=contents.end)
    names = order.run()
    if type(names) is not list or {name_of_storage(name) for name in names} != storages.keys():
        raise Malformed("its list of storages is another than its tensors'")
    at = order.end
    for name in names:
        at, size = at + 8, storages[name].size
        if at + size > len(data):
            raise Truncated("numbers are missing at its end")
        if int.from_bytes(bytes(data[at - 8 : at]), "little") * storages[name].dtype.itemsize != size:
            raise Malformed("a storage is of another size than its tensors say")
        storages[name].place(data, at, size)
        at += size
    return contents.plain(part(tree))


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors
# ---------------------------------------------------------------------------------------------------------------------


def _read_safetensors(data: np.ndarray, length: int) -> dict[str, np.ndarray]:
    first = 8 + length
    if first > len(data):
        raise Truncated("its header ends in the middle")
    state, end = {}, first
    try:
        header = json.loads(bytes(data[8:first]), object_pairs_hook=_without_repeats)
        header.pop("__metadata__", None)
        entries = [_entry(**entry) for entry in header.values()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Malformed("its header makes no sense") from None
    for key, (dtype, shape, (start, stop)) in zip(header, entries, strict=True):
        if dtype not in SAFETENSORS:
            raise Refused(f"holds {quoted(key)} of the unknown dtype {quoted(dtype)}; save it as F32")
        if first + whole(stop) > len(data):
            raise Truncated("numbers are missing at its end")
        array = view(data, first + whole(start), stop - start, np.dtype(SAFETENSORS[dtype]), shape)
        if array.nbytes != stop - start:
            raise Malformed(f"the shape of {quoted(key)} does not fit its bytes")
        state[key], end = array, max(end, first + stop)
    if end != len(data):
        raise Malformed(f"there are {len(data) - end} bytes too many at its end")
    return state


def _entry(dtype: str, shape: list, data_offsets: list) -> tuple[str, list, list]:
    if type(dtype) is not str or type(shape) is not list or len(data_offsets) != 2:
        raise ValueError
    return dtype, shape, data_offsets


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise Malformed("a key stands twice in its header")
    return made
