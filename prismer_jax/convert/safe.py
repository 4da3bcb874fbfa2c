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
import math
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from prismer_jax.convert.pickled import Attributes, Dtype, Malformed, Refused, Truncated, quoted, whole
from prismer_jax.convert.tensors import (
    TORCH_NAMES,
    TORCHSCRIPT_NAMES,
    Storage,
    name_of_storage,
    storage_type,
    view,
)
from prismer_jax.convert.unpickle import UNPACKED, Machine
from prismer_jax.errors import UserError

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
_BIG_ENDIAN = "was written on a big-endian machine, which is not read here: save it again on another one"
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


def load(path: str | os.PathLike[str], records: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Where the file holds a dict with exactly one of the dicts 'model' and 'state_dict' (NESTS) in it, that one is the
    state dict, and the rest, such as the optimiser's state, is left. Of a TorchScript archive, the tensors among the
    attributes of its modules are read, under the keys that the modules' state dict has.

    Args:
      path: the file.
      records: as in `load_tree`.

    Returns:
      {key: read-only array}; bfloat16 and float8 are the types of ml_dtypes.

    Raises:
      UserError: the file is missing, damaged, no file of weights, or holds something else; the message says the remedy.
    """
    path = pathlib.Path(path)
    tree = load_tree(path, records)
    if isinstance(tree, Attributes):
        tree = dict(_of_modules(tree))
    if isinstance(tree, dict):
        nests = [key for key in NESTS if isinstance(tree.get(key), dict)]
        if len(nests) > 1:
            raise UserError(f"{path}: holds both {' and '.join(nests)}. Save the one that is wanted alone.")
        tree = tree[nests[0]] if nests else tree
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
      The data. Classes and functions that may stand in it are given as their names.

    Raises:
      UserError: as `load`.
    """
    path = pathlib.Path(path)
    with _explained(path):
        data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size and path.is_file() else np.empty(0, np.uint8)
        start = bytes(data[:512])
        if not start:
            raise Refused("is a folder: give a file in it" if path.is_dir() else "is empty: download it again")
        for pattern, problem in _MISTAKEN:
            if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
                raise Refused(problem)
        if start[:2] == b"PK":
            return _read_zip(path, data, records)
        if start[8:9] == b"{" and (length := int.from_bytes(start[:8], "little")) <= _HEADER:
            return _read_safetensors(data, length)
        if start[:1] in (b"\x80", b"(", b"c", b"}", b"]"):
            return _read_pickle(data, records)
        raise Refused(f"is no file of weights: it begins with {start[:8]!r}. Is it the right one?")


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Truncated as error:
        raise UserError(f"{path}: is cut short: {error}. Download it again.") from None
    except (Malformed, RecursionError, zipfile.BadZipFile, zlib.error, NotImplementedError, UnicodeError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"{path}: is damaged: {reason}. Download it again and compare its checksum.") from None
    except Refused as error:
        raise UserError(f"{path}: {error}.") from None
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _shown(key: Any) -> str:
    return quoted(key) if type(key) is str else type(key).__name__


def _of_modules(module: Attributes, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in module.items():
        if isinstance(value, Attributes):
            yield from _of_modules(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value


# ---------------------------------------------------------------------------------------------------------------------
# Pickles, and PyTorch's older files, which are pickles one after the other and then the storages
# ---------------------------------------------------------------------------------------------------------------------


def _read_pickle(data: np.ndarray, records: Collection[str]) -> Any:
    machine = Machine(data, records=records.__contains__)
    first = machine.run()
    if type(first) is int and first == _MAGIC:
        return _read_older(data, machine.end, records)
    return machine.plain(first)


def _read_older(data: np.ndarray, start: int, records: Collection[str]) -> Any:
    storages: dict[str, Storage] = {}

    def storage(key: Any) -> Storage:
        _, kind, name, _, count, part = key  # 'storage', class, name, device, elements, which part of it is meant
        found = storages.setdefault(name_of_storage(name), Storage(storage_type(kind), count))
        return found if part is None else found.part(*part[1:])

    version = Machine(data, start=start)
    version.run()
    system = Machine(data, start=version.end)
    facts = system.run()
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise Refused(_BIG_ENDIAN)
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
    return contents.plain(tree)


# ---------------------------------------------------------------------------------------------------------------------
# Zip files: PyTorch's and NumPy's
# ---------------------------------------------------------------------------------------------------------------------

Region = tuple[np.ndarray, int, int]  # buffer, first byte, number of bytes


def _read_zip(path: pathlib.Path, data: np.ndarray, records: Collection[str]) -> Any:
    if not zipfile.is_zipfile(path):
        raise Truncated("the table of contents at its end is missing")
    with zipfile.ZipFile(path) as archive:
        members = archive.NameToInfo
        packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if sum(info.file_size for info in packed) > max(UNPACKED, 100 * len(data)):
            raise Refused("unpacks to a hundred times its size, as only an attack on the memory does")

        def region(name: str) -> Region:
            if name not in members:
                raise Malformed(f"its part {quoted(name)} is missing")
            return _member(archive, members[name], data)

        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(roots) == 1:
            return _read_torch(region, members, roots[0], records)
        if members and all(name.endswith(".npy") for name in members):
            return {name.removesuffix(".npy"): _array(*region(name)) for name in members}
    raise Refused(
        "is a zip file, but neither PyTorch's nor NumPy's: unpack it; or, if PyTorch before 1.4 wrote it, save it with "
        "a newer one"
    )


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: np.ndarray) -> Region:
    if info.flag_bits & 1:
        raise Refused("is encrypted: unpack it first")
    if info.compress_type == zipfile.ZIP_DEFLATED:
        with archive.open(info) as file:
            unpacked = file.read(info.file_size)  # not more, whatever the stream holds
        if len(unpacked) != info.file_size:
            raise Malformed(f"its part {quoted(info.filename)} is shorter than it should be")
        return np.frombuffer(unpacked, np.uint8), 0, len(unpacked)
    if info.compress_type != zipfile.ZIP_STORED:
        raise Refused("is compressed in an unusual way: unpack it and pack it again with plain zip")
    header = bytes(data[info.header_offset : info.header_offset + 30])
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or info.compress_size != info.file_size or start + info.file_size > len(data):
        raise Malformed(f"its part {quoted(info.filename)} is not where it should be")
    return data, start, info.file_size


def _read_torch(
    region: Callable[[str], Region], members: dict[str, zipfile.ZipInfo], root: str, records: Collection[str]
) -> Any:
    def content(name: str) -> np.ndarray:
        buffer, start, size = region(root + name)
        return buffer[start : start + size]

    def storage(key: Any) -> Storage:
        _, kind, name, _, count = key  # 'storage', class, name, device, elements
        if name_of_storage(name) not in storages:
            storages[name] = Storage(storage_type(kind), count)
            storages[name].place(*region(f"{root}data/{name}"))
        return storages[name]

    storages: dict[str, Storage] = {}
    if f"{root}byteorder" in members and bytes(content("byteorder")) != b"little":
        raise Refused(_BIG_ENDIAN)
    pickled = content("data.pkl")
    if members[f"{root}data.pkl"].CRC not in (0, zlib.crc32(pickled)):  # 0: torch was told to compute none
        raise Malformed("its pickle has another checksum")
    if f"{root}constants.pkl" in members:  # TorchScript: every module is an object of a class of its own
        machine = Machine(
            pickled,
            TORCHSCRIPT_NAMES,
            records=lambda name: name.startswith("__torch__.") or name in records,
            persistent=storage,
        )
    else:
        machine = Machine(pickled, TORCH_NAMES, records=records.__contains__, persistent=storage)
    return machine.plain(machine.run())


def _array(buffer: np.ndarray, start: int, size: int) -> np.ndarray:
    """Returns the array of a .npy file."""
    header = re.match(
        rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)"
        rb"\{'descr': '([^']{2,12})', 'fortran_order': (True|False), 'shape': \(([\dL, ]*)\), \} *\n",
        bytes(buffer[start : start + min(size, 10_000)]),
        re.DOTALL,
    )
    if header is None:
        raise Refused("holds an array of objects or of structures; save them as arrays of numbers instead")
    shape = [int(length.strip(b" L")) for length in header[3].split(b",") if length.strip()]
    strides = [math.prod(shape[:axis]) for axis in range(len(shape))] if header[2] == b"True" else None
    dtype = Dtype(header[1].decode("ascii")).dtype
    return view(buffer, start + header.end(), size - header.end(), dtype, shape, strides)


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
        entries = [(key, entry["dtype"], entry["shape"], *entry["data_offsets"]) for key, entry in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Malformed("its header makes no sense") from None
    for key, dtype, shape, start, stop in entries:
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


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise Malformed("a key stands twice in its header")
    return made
