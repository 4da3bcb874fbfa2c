"""Zip files: PyTorch's, TorchScript archives, and NumPy's .npz, as views of the mapped file.

Members are found by zipfile's table of contents; only the few that are compressed are read through zipfile.
"""

from __future__ import annotations

import math
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from prismer_jax.weights.pickled import Attributes, Dtype, Malformed, Refused, Truncated, quoted
from prismer_jax.weights.tensors import (
    BIG_ENDIAN,
    TORCH_NAMES,
    TORCHSCRIPT_NAMES,
    Storage,
    name_of_storage,
    storage_type,
    view,
)
from prismer_jax.weights.unpickle import UNPACKED, Machine

Region = tuple[np.ndarray, int, int]  # buffer, first byte, number of bytes
Part = Callable[[Any], Any]
Declared = Mapping[str, Collection[str]]  # {class of a module: its parameters and buffers}


class Module(Attributes):
    """The outermost module of a TorchScript archive."""

    declared: Declared


def state_of(module: Attributes, declared: Declared, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, array) of the module's state dict: without tensors that are neither parameter nor buffer."""
    for name, value in module.items():
        if isinstance(value, Attributes):
            yield from state_of(value, declared, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray) and name in declared.get(module.kind, (name,)):
            yield f"{prefix}{name}", value


def read_zip(path: pathlib.Path, data: np.ndarray, records: Collection[str], part: Part) -> Any:
    """Returns plain data of PyTorch's file, a `Module` of a TorchScript archive, {name: array} of an .npz.

    Args:
      path, data: the file, and its bytes mapped.
      records: classes whose objects are read as their attributes; not for TorchScript, all of whose classes are.
      part: from all that a PyTorch's file holds to what is wanted of it.

    Raises:
      Malformed, Refused: see there.
    """
    if not zipfile.is_zipfile(path):
        raise Truncated("the table of contents at its end is missing")
    with _directory(path) as archive:
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
            return _read_torch(region, members, roots[0], records, part)
        if members and all(name.endswith(".npy") for name in members):
            return {name.removesuffix(".npy"): _array(*region(name)) for name in members}
    raise Refused(
        "is a zip file, but neither PyTorch's nor NumPy's: unpack it; or, if PyTorch before 1.4 wrote it, save it with "
        "a newer one"
    )


def _directory(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError):  # OSError: seeks before 0
        raise Malformed("the table of contents at its end makes no sense") from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: np.ndarray) -> Region:
    part, at = f"its part {quoted(info.filename)}", info.header_offset
    header = bytes(data[at : at + 30]) if at >= 0 else b""
    start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or start + info.compress_size > len(data):
        raise Malformed(f"{part} is not where it should be")
    if info.flag_bits & 1:
        raise Refused("is encrypted: unpack it first")
    if info.compress_type == zipfile.ZIP_STORED:
        if info.compress_size != info.file_size:
            raise Malformed(f"{part} is of another size than it should be")
        return data, start, info.file_size
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise Refused("is compressed in an unusual way: unpack it and pack it again with plain zip")
    try:
        with archive.open(info) as file:
            unpacked = file.read(info.file_size)  # not more, whatever the stream holds
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise Malformed(f"{part} cannot be unpacked") from None
    if len(unpacked) != info.file_size:
        raise Malformed(f"{part} is shorter than it should be")
    return np.frombuffer(unpacked, np.uint8), 0, len(unpacked)


def _read_torch(
    region: Callable[[str], Region],
    members: dict[str, zipfile.ZipInfo],
    root: str,
    records: Collection[str],
    part: Part,
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
    if f"{root}byteorder" in members and bytes(content("byteorder")) == b"big":
        raise Refused(BIG_ENDIAN)
    pickled = content("data.pkl")
    if members[f"{root}data.pkl"].CRC not in (0, zlib.crc32(pickled)):  # 0: torch was told to compute none
        raise Malformed("its pickle has another checksum")
    if f"{root}constants.pkl" not in members:
        machine = Machine(pickled, TORCH_NAMES, records=records.__contains__, persistent=storage)
        return machine.plain(part(machine.run()))
    # TorchScript: every module is an object of a class of its own.
    classes = re.compile(r"__torch__\..*").fullmatch
    machine = Machine(pickled, TORCHSCRIPT_NAMES, records=classes, persistent=storage)
    tree = machine.plain(machine.run())
    if not isinstance(tree, Attributes):
        return tree
    module = Module(tree)
    module.kind, module.declared = tree.kind, {}
    for name in members:
        if source := re.fullmatch(re.escape(root) + r"code/(__torch__.*)\.py", name):
            module.declared |= _declared(source[1].replace("/", "."), bytes(content(name.removeprefix(root))))
    return module


def _declared(module: str, source: bytes) -> Declared:
    """Returns what the text of a module of TorchScript declares; the text is searched, not executed."""
    head = r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$"
    found = re.findall(head, source.decode("utf-8", "replace"), re.MULTILINE)
    return {f"{module}.{cls}": re.findall(r'"([^"]*)"', f"{first}, {second}") for cls, first, second in found}


def _array(buffer: np.ndarray, start: int, size: int) -> np.ndarray:
    """Returns the array of a .npy file."""
    head = bytes(buffer[start : start + min(size, 10_000)])
    header = re.match(
        rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)"
        rb"\{'descr': '([^']{2,12})', 'fortran_order': (True|False), "
        rb"'shape': \(((?:\d{1,19}L?, ?)*(?:\d{1,19}L?)?)\), \} *\n",
        head,
        re.DOTALL,
    )
    if header is None and b"'descr': [" in head:
        raise Refused("holds an array of a structured dtype; save its fields as arrays instead")
    if header is None:
        raise Malformed("the header of an array makes no sense")
    shape = [int(length) for length in re.findall(rb"\d+", header[3])]
    strides = [math.prod(shape[:axis]) for axis in range(len(shape))] if header[2] == b"True" else None
    dtype = Dtype(header[1].decode("latin1")).dtype
    return view(buffer, start + header.end(), size - header.end(), dtype, shape, strides)
