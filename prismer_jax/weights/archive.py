"""Where in a file its storages lie: PyTorch's zip and older files, TorchScript archives, and NumPy's .npz.

The members of a zip file are found by zipfile's table of contents, and those that are not compressed are views of the
mapped file. Formats as in torch/serialization.py and numpy.lib.format.
"""

from __future__ import annotations

import functools
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from prismer_jax.weights.classes import (
    DTYPES,
    TORCH_NAMES,
    TORCHSCRIPT_NAMES,
    UNPACKED,
    Attributes,
    Dtype,
    Malformed,
    Refused,
    Storage,
    Truncated,
    quoted,
    view,
    whole,
)
from prismer_jax.weights.unpickle import Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first of five pickles in PyTorch's older files
_PICKLE = 1 << 20  # bytes that a pickle in even the smallest file may unpack to: what it makes takes 300 times as many
_BIG_ENDIAN = "was written on a big-endian machine, which is not read here: save it again on another one"

Part = Callable[[Any], Any]  # from all that a file holds to what is read of it


class Module(Attributes):
    """The outermost module of a TorchScript archive; `declared` is {class of a module: its parameters and buffers}."""

    declared: Mapping[str, Collection[str]]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns {key: array} of all modules: without tensors that are neither parameter nor buffer."""
        return dict(self._state(self, ""))

    def _state(self, module: Attributes, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
        for name, value in module.items():
            if isinstance(value, Attributes):
                yield from self._state(value, f"{prefix}{name}.")
            elif isinstance(value, np.ndarray) and name in self.declared.get(module.kind, (name,)):
                yield f"{prefix}{name}", value


def read_older(data: memoryview, start: int, records: Collection[str], part: Part) -> Any:
    """Returns plain data of a file of PyTorch before 1.6: pickles one after the other, and then the storages.

    Arguments and errors as of `read_zip`; `start` is where the second pickle begins.
    """
    storages: dict[str, Storage] = {}
    regions: dict[str, memoryview] = {}

    def storage(kind: Any, name: str, count: Any, view_of: Any) -> Storage:
        if name not in storages:
            storages[name] = Storage(kind, count, lambda: regions[name])
        if view_of is None:
            return storages[name]
        _, offset, length = view_of
        start = whole(offset) * storages[name].dtype.itemsize
        return Storage(kind, length, lambda: storages[name].region()[start:])

    version = Unpickler(data, start=start)
    version.load()
    system = Unpickler(data, start=version.end)
    facts = system.load()
    if type(facts) is not dict or type(facts.get("little_endian")) is not bool:
        raise Malformed("it does not say on what machine it was written")
    if not facts["little_endian"]:
        raise Refused(_BIG_ENDIAN)
    contents = Unpickler(data, TORCH_NAMES, records=records.__contains__, storage=storage, start=system.end)
    tree = contents.load()
    order = Unpickler(data, start=contents.end)
    names = order.plain(order.load())
    if type(names) is not list or storages.keys() != set(names):
        raise Malformed("its list of storages is another than its tensors'")
    at = order.end
    for name in names:
        count, at = data[at : at + 8], at + 8 + storages[name].size
        if at > len(data):
            raise Truncated("numbers are missing at its end")
        if int.from_bytes(count, "little") * storages[name].dtype.itemsize != storages[name].size:
            raise Malformed("a storage is of another size than its tensors say")
        regions[name] = data[at - storages[name].size : at]
    return contents.plain(part(tree))


def read_zip(path: pathlib.Path, data: memoryview, records: Collection[str], part: Part) -> Any:
    """Returns plain data of PyTorch's file, a `Module` of a TorchScript archive, {name: array} of an .npz.

    Args:
      path, data: the file, and its bytes.
      records: classes whose objects are read as their attributes; not for TorchScript, all of whose classes are.
      part: from all that PyTorch's file holds to what is read of it.

    Raises:
      Malformed, Refused: see there.
    """
    if not zipfile.is_zipfile(path):
        raise Truncated("the table of contents at its end is missing")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError):  # OSError: seeks before 0
        raise Malformed("the table of contents at its end makes no sense") from None
    with archive:
        members = {info.filename: info for info in archive.infolist()}
        packed = sum(info.file_size for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED)
        if packed > max(UNPACKED, 100 * len(data)):
            raise Refused("unpacks to a hundred times its size, as only an attack on the memory does")

        @functools.cache
        def region(name: str) -> memoryview:
            if name not in members:
                raise Malformed(f"its part {quoted(name)} is missing")
            return _member(archive, members[name], data)

        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(roots) == 1:
            return _read_torch(region, members, roots[0], len(data), records, part)
        if members and all(name.endswith(".npy") for name in members):
            return {name.removesuffix(".npy"): _array(region(name)) for name in members}
    raise Refused(
        "is a zip file, but neither PyTorch's nor NumPy's: unpack it; or, if PyTorch before 1.4 wrote it, save it with "
        "a newer one"
    )


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: memoryview) -> memoryview:
    part, at = f"its part {quoted(info.filename)}", info.header_offset
    header = data[at : at + 30] if at >= 0 else b""
    start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or start + info.compress_size > len(data):
        raise Malformed(f"{part} is not where it should be")
    if info.flag_bits & 1:
        raise Refused("is encrypted: unpack it first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused("is compressed in an unusual way: unpack it and pack it again with plain zip")
    unpacked = data[start : start + info.compress_size]
    if info.compress_type == zipfile.ZIP_DEFLATED:
        try:
            with archive.open(info) as file:
                unpacked = memoryview(file.read(info.file_size))  # not more, whatever the stream holds
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            raise Malformed(f"{part} cannot be unpacked") from None
    if len(unpacked) != info.file_size:
        raise Malformed(f"{part} is of another size than it should be")
    return unpacked


def _read_torch(
    region: Callable[[str], memoryview],
    members: Mapping[str, zipfile.ZipInfo],
    root: str,
    size: int,
    records: Collection[str],
    part: Part,
) -> Any:
    def storage(kind: Any, name: str, count: Any) -> Storage:
        place = region(f"{root}data/{name}")
        return Storage(kind, count, lambda: place)

    if f"{root}byteorder" in members and region(f"{root}byteorder") == b"big":
        raise Refused(_BIG_ENDIAN)
    pickled = region(f"{root}data.pkl")
    if len(pickled) > max(_PICKLE, size):
        raise Refused("unpacks to a pickle larger than itself, as only an attack on the memory does")
    if members[f"{root}data.pkl"].CRC not in (0, zlib.crc32(pickled)):  # 0: torch was told to compute none
        raise Malformed("its pickle has another checksum")
    if f"{root}constants.pkl" not in members:
        unpickler = Unpickler(pickled, TORCH_NAMES, records=records.__contains__, storage=storage)
        return unpickler.plain(part(unpickler.load()))
    # TorchScript: every module is an object of a class of its own.
    modules = re.compile(r"__torch__\..*").fullmatch
    unpickler = Unpickler(pickled, TORCHSCRIPT_NAMES, records=modules, storage=storage)
    tree = unpickler.plain(unpickler.load())
    if not isinstance(tree, Attributes):
        return tree
    module = Module(tree)
    module.kind, module.declared = tree.kind, {}
    for name in members:
        if source := re.fullmatch(re.escape(root) + r"code/(__torch__.*)\.py", name):
            module.declared |= _declared(source[1].replace("/", "."), bytes(region(name)))
    return module


def _declared(module: str, source: bytes) -> dict[str, list[str]]:
    """Returns what the text of a module of TorchScript declares; the text is searched, not executed."""
    head = r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$"
    heads = re.findall(head, source.decode("utf-8", "replace"), re.MULTILINE)
    return {f"{module}.{cls}": re.findall(r'"([^"]*)"', f"{first}, {second}") for cls, first, second in heads}


def _array(member: memoryview) -> np.ndarray:
    """Returns the array of a .npy file. NumPy's own reader of headers evaluates them, and takes twice the time."""
    header = re.match(
        rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)"
        rb"\{'descr': '([^']{2,12})', 'fortran_order': (True|False), "
        rb"'shape': \(((?:\d{1,19}L?, ?)*(?:\d{1,19}L?)?)\), \} *\n",
        member[:10_000],
        re.DOTALL,
    )
    if header is None and b"'descr': [" in bytes(member[:10_000]):
        raise Refused("holds an array of a structured dtype; save its fields as arrays instead")
    if header is None:
        raise Malformed("the header of an array makes no sense")
    shape = [int(length) for length in re.findall(rb"\d+", header[3])]
    # NumPy knows no bfloat16 and says that its numbers are two bytes of something.
    bfloat16 = header[1] in (b"|V2", b"<V2")
    dtype = DTYPES["bfloat16"] if bfloat16 else Dtype(header[1].decode("latin1")).dtype
    fortran = header[2] == b"True"
    array = view(member[header.end() :], dtype, shape[::-1] if fortran else shape)
    return array.T if fortran else array
