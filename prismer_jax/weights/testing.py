"""Files of weights made by hand, for tests: the bytes that torch.save, torch.jit.save, Python 2 ... write.

A piece of a pickle is a string of opcodes that pushes one value; pieces are joined by +, `group`, `call`, `mapping`.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
KINDS = {
    "float64": ("Double", "F64"),
    "float32": ("Float", "F32"),
    "float16": ("Half", "F16"),
    "bfloat16": ("BFloat16", "BF16"),
    "int64": ("Long", "I64"),
    "bool": ("Bool", "BOOL"),
}


def item(value: object) -> bytes:
    """The piece of a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def old(data: bytes) -> bytes:
    """The piece of a str of Python 2."""
    return b"T" + struct.pack("<i", len(data)) + data if len(data) > 255 else b"U" + bytes([len(data)]) + data


def name(text: str) -> bytes:
    module, _, attribute = text.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def group(*pieces: bytes) -> bytes:
    return b"(" + b"".join(pieces) + b"t"


def call(function: str, *pieces: bytes) -> bytes:
    return name(function) + group(*pieces) + b"R"


def mapping(pieces: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(item(key) + piece for key, piece in pieces.items()) + b"u"


def instance(cls: str, attributes: Mapping[str, bytes]) -> bytes:
    return name(cls) + b")\x81" + mapping(attributes) + b"b"


def whole(piece: bytes) -> bytes:
    """The pickle of a piece."""
    return b"\x80\x02" + piece + b"."


def tensor(
    storage: str,
    kind: str,
    count: int,
    shape: object,
    strides: object,
    offset: object = 0,
    *rest: bytes,
    older: bool = False,
) -> bytes:
    """A tensor; `rest` stands between the device and the end of the storage's id."""
    where = [item("storage"), name(f"torch.{kind}Storage"), item(storage), item("cpu"), item(count), *rest]
    place = group(*where, *([b"N"] if older and not rest else [])) + b"Q"
    hooks = name("collections.OrderedDict") + b")R"
    return call("torch._utils._rebuild_tensor_v2", place, *map(item, (offset, shape, strides)), b"\x89", hooks)


def torch_zip(
    pickled: bytes,
    storages: Mapping[str, bytes],
    *,
    more: Mapping[str, bytes] | None = None,
    how: int = zipfile.ZIP_STORED,
) -> bytes:
    parts = {"data.pkl": pickled, "byteorder": b"little", **{f"data/{k}": v for k, v in storages.items()}}
    return zipped({f"archive/{k}": v for k, v in (parts | {"version": b"3\n"} | (more or {})).items()}, how)


def zipped(parts: Mapping[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for part, data in parts.items():
            archive.writestr(zipfile.ZipInfo(part), data, how)
    return buffer.getvalue()


def torch_older(pickled: bytes, storages: Mapping[str, tuple[int, bytes]], system: object = None) -> bytes:
    """{name: (elements, bytes)}."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = MAGIC + whole(item(1001)) + whole(item(system or facts)) + pickled + whole(item(list(storages)))
    return head + b"".join(struct.pack("<q", count) + data for count, data in storages.values())


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---------------------------------------------------------------------------------------------------------------------
# The same arrays in every format
# ---------------------------------------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    """Arrays of several types and shapes, one of them tied to another."""
    rng = np.random.RandomState(0)
    state = {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "a.bias": rng.standard_normal(300),
        "half": rng.standard_normal(5).astype(np.float16),
        "brain": rng.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
        "count": np.asarray(7),
        "mask": np.asarray([True, False]),
        "none": np.zeros((0, 3), np.float32),
    }
    return state | {"tied": state["a.weight"]}


def plain_arrays() -> dict[str, np.ndarray]:
    """Those that pickles and .npz of NumPy know."""
    return {key: array for key, array in arrays().items() if array.dtype != ml_dtypes.bfloat16}


def _tensors(state: Mapping[str, np.ndarray], older: bool = False) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """({key: piece}, {storage: bytes}); the same array twice is one storage."""
    pieces, numbers, storages = {}, {}, {}
    for key, array in state.items():
        number = numbers.setdefault(id(array), str(len(numbers)))
        strides = tuple(stride // array.itemsize for stride in array.strides)
        kind = KINDS[array.dtype.name][0]
        pieces[key] = tensor(number, kind, array.size, array.shape, strides, older=older)
        storages[number] = array.tobytes()
    return pieces, storages


def _zip(how: int) -> bytes:
    pieces, storages = _tensors(arrays())
    return torch_zip(whole(mapping(pieces)), storages, how=how)


def _older() -> bytes:
    pieces, storages = _tensors(arrays(), older=True)
    counts = {number: piece for number, piece in zip(storages, [12, 300, 5, 4, 1, 2, 0], strict=True)}
    return torch_older(whole(mapping(pieces)), {k: (counts[k], data) for k, data in storages.items()})


def _script() -> bytes:
    pieces, storages = _tensors(arrays())
    inner = {"training": b"\x89", "weight": pieces.pop("a.weight"), "bias": pieces.pop("a.bias")}
    tags = call("torch.jit._pickle.restore_type_tag", item(["x"]), item("List[str]"))
    module = {"a": instance("__torch__.torch.nn.modules.linear.Linear", inner), **pieces, "names": tags}
    module["attn_mask"] = pieces["half"]  # a tensor that is neither parameter nor buffer
    source = (
        b"class Net(Module):\n"
        b'  __parameters__ = ["half", "brain", ]\n'
        b'  __buffers__ = ["count", "mask", "none", "tied", ]\n'
        b"  half : Tensor\n"
    )
    code = {"constants.pkl": whole(b")"), "code/__torch__.py": source}
    return torch_zip(whole(instance("__torch__.Net", module)), storages, more=code)


def _python2() -> bytes:
    """The pickle of Python 2.7, protocol 2, where arrays hold a str."""
    pieces = {}
    for key, array in plain_arrays().items():
        nothing = [b"N", b"N", b"N", item(-1), item(-1), item(0)]
        code = array.dtype.str[1:].encode()
        dtype = call("numpy.dtype", old(code), item(0), item(1)) + group(item(3), old(b"<"), *nothing) + b"b"
        empty = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), item((0,)), old(b"b"))
        pieces[key] = empty + group(item(1), item(array.shape), dtype, b"\x89", old(array.tobytes())) + b"b"
    return whole(mapping({"model": mapping(pieces), "__author__": old(b"third_party")}))


def _safetensors() -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for key, array in arrays().items():
        offsets = [len(data), len(data) + array.nbytes]
        header[key] = {"dtype": KINDS[array.dtype.name][1], "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    return safetensors(header, data)


def _npz(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **plain_arrays())
    return buffer.getvalue()


def formats() -> dict[str, bytes]:
    """{what: a file}: `arrays` where it begins with torch or safetensors, else `plain_arrays`."""
    pickles: Sequence[int] = range(pickle.HIGHEST_PROTOCOL + 1)
    return {
        "torch zip": _zip(zipfile.ZIP_STORED),
        "torch zip, compressed": _zip(zipfile.ZIP_DEFLATED),
        "torch older": _older(),
        "torch script": _script(),
        "safetensors": _safetensors(),
        "npz": _npz(np.savez),
        "npz, compressed": _npz(np.savez_compressed),
        "pickle of Python 2": _python2(),
        **{f"pickle {n}": pickle.dumps({"model": plain_arrays(), "epoch": 3}, n) for n in pickles},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded(megabytes: int, seconds: float = 10) -> Iterator[None]:
    """Gives that much memory beyond what is in use (a MemoryError follows) and that much time of the processor."""
    pages = pathlib.Path("/proc/self/statm")
    limits, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    if pages.exists():  # Linux
        size = int(pages.read_text().split()[0]) * resource.getpagesize() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - start < seconds
