"""The classes and functions that a checkpoint may name, and what stands for each: a closed table of inert values.

Nothing is imported or called because a file says so. The file can give an `Inert` value a state, which its class
checks, and nothing else; `plain` makes the array, dict or text of it when the pickle has been read. Arguments and
states are those of numpy's __reduce__ and __setstate__, of torch/_utils.py, torch/storage.py and torch/serialization.py
(PyTorch 2.13), and of torch/csrc/jit/serialization/pickler.cpp for TorchScript.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

Visit = Callable[[Any], Any]
UNPACKED = 64 << 20  # bytes that even the smallest file may unpack to
_TYPES = (  # NumPy's name of a type, or ml_dtypes'; PyTorch's storage class; safetensors' code
    ("float64", "DoubleStorage", "F64"),
    ("float32", "FloatStorage", "F32"),
    ("float16", "HalfStorage", "F16"),
    ("bfloat16", "BFloat16Storage", "BF16"),
    ("int64", "LongStorage", "I64"),
    ("int32", "IntStorage", "I32"),
    ("int16", "ShortStorage", "I16"),
    ("int8", "CharStorage", "I8"),
    ("uint8", "ByteStorage", "U8"),
    ("bool", "BoolStorage", "BOOL"),
    ("complex64", "ComplexFloatStorage", "C64"),
    ("complex128", "ComplexDoubleStorage", None),
    ("uint64", None, "U64"),
    ("uint32", None, "U32"),
    ("uint16", None, "U16"),
    ("float8_e4m3fn", None, "F8_E4M3"),
    ("float8_e5m2", None, "F8_E5M2"),
    ("float8_e4m3fnuz", None, None),
    ("float8_e5m2fnuz", None, None),
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name, _, _ in _TYPES}
STORAGES = {storage: DTYPES[name] for name, storage, _ in _TYPES if storage}
SAFETENSORS = {code: DTYPES[name] for name, _, code in _TYPES if code}
_QUANTISED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")


class Malformed(Exception):
    """The file is damaged: the message says how."""


class Truncated(Malformed):
    """The file ends too early."""


class Refused(Exception):
    """The file holds what is not read here: the message names it and the remedy."""


def quoted(name: Any) -> str:
    """Returns a name out of a file as it can stand in an error: one line, not long, no control characters."""
    if type(name) is not str:  # whose text could be endless
        return f"of type {type(name).__name__}"
    return ascii(name if len(name) <= 120 else f"{name[:120]}...")


def whole(value: Any) -> int:
    """Returns a size or an offset; anything but an integer in 0..2**63-1 is Malformed."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise Malformed("a size or an offset is negative or no integer")
    return value


def key_of(value: Any) -> Any:
    """Returns a dict's key or a set's member, a number, a text or a flat tuple of these; anything else is Malformed.

    Python's hash of a tuple nested a million deep overflows the stack; that of a tuple of the same tuples never ends.
    """
    if type(value) is tuple and len(value) > 100:  # again and again from the memo, it would take endless time too
        raise Malformed("a key of more than 100 values")
    for part in value if type(value) is tuple else (value,):
        if isinstance(part, Unknown):
            raise part.refused()
        if part is not None and type(part) not in (str, bytes, bool, int, float):
            raise Malformed(f"a key of type {type(part).__name__}")
    return value


def view(region: memoryview, dtype: np.dtype, shape: Any, strides: Any = None, offset: Any = 0) -> np.ndarray:
    """Returns a read-only array on a region of a file, checked with exact integers.

    Args:
      region: its bytes.
      dtype, shape: of the array.
      strides, offset: in elements; if not given, rows after each other from the start of the region.

    Raises:
      Malformed: an element lies outside of the region, or the arguments make no sense.
      Refused: the array repeats few bytes endlessly.
    """
    if strides is None:
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if len(strides) != len(shape) or len(shape) > 32:
        raise Malformed("a tensor with a wrong number of axes")
    # The stride of an axis of length 1 is never used.
    steps = [whole(stride) * (whole(length) > 1) for length, stride in zip(shape, strides, strict=True)]
    last = whole(offset) + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    if math.prod(shape) and (last + 1) * dtype.itemsize > len(region):
        raise Malformed("a tensor reaches beyond its storage")
    limit = max(len(region.obj), UNPACKED) if math.prod(shape) else 1 << 62  # of the whole file: a storage may repeat
    if math.prod(max(length, 1) for length in shape) * dtype.itemsize > limit:
        raise Refused("holds a tensor larger than the file, as only an attack on the memory does")
    if not math.prod(shape):
        return np.ndarray(shape, dtype, region)
    return np.ndarray(shape, dtype, region, offset * dtype.itemsize, [step * dtype.itemsize for step in steps])


class Inert:
    """A value under construction, which takes no state unless its class says so."""

    def __setstate__(self, state: Any) -> None:
        raise Malformed(f"a {type(self).__name__} is given a state")

    def plain(self, visit: Visit) -> Any:
        """Returns the value for the reader's user; `visit` does the same for values inside."""
        raise NotImplementedError


class Name(Inert):
    """A class or function that the file may mention and, if `make` is given, call."""

    def __init__(self, text: str, make: Callable[..., Any] | None) -> None:
        self.text, self.make = text, make

    def __call__(self, *arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, Unknown):
                raise argument.refused()
        if self.make is None:
            raise Malformed("it calls what is no function")
        return self.make(*arguments)

    def plain(self, visit: Visit) -> str:
        return self.text


class Unknown(Inert):
    """A class that is in no table, or an object of such a class: a record of its attributes, if these are asked for.

    Any other may stand where nobody looks, as an options object beside the weights does. A call is refused at once.
    """

    def __init__(self, text: str, record: bool) -> None:
        self.text, self.record, self.state = text, record, {}

    def refused(self) -> Refused:
        return Refused(
            f"holds {quoted(self.text)}, which is no tensor, array or plain container; nothing of it was executed. Get "
            "weights without it, or save them again as a plain state dict: torch.save(model.state_dict(), FILE)"
        )

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.refused()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Forgets what is put into an object that is a list in its own way."""

    extend = append

    def plain(self, visit: Visit) -> Any:
        if not self.record:
            raise self.refused()
        attributes = visit(self.state)
        if isinstance(attributes, dict):
            attributes = Attributes(attributes)
            attributes.kind = self.text
        return attributes


class Attributes(dict):
    """The attributes of an object of the class `kind`; a plain dict in every other way."""

    kind = ""


class _OrderedDict(dict):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Takes attributes, which tell us nothing."""


def _dict(items: Any = ()) -> dict:
    return _OrderedDict((key_of(key), item) for key, item in (items.items() if isinstance(items, dict) else items))


def _set(items: Any = ()) -> set:
    return set(map(key_of, items))


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Python 3's bytes: in protocols 0 to 2 they are a text."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"holds text in the encoding {quoted(encoding)}; only bytes are read this way")
    return text.encode("latin1") if type(text) is str else bytes(memoryview(text))


class Dtype(Inert):
    """numpy.dtype of numbers, booleans or strings."""

    def __init__(self, code: Any, *_: Any) -> None:
        numbers = r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,8})"
        if type(code) is not str or not re.fullmatch(numbers, code):
            raise Refused(f"holds an array of the unknown dtype {quoted(code)}; save it as numbers instead")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Takes a version, the byte order, then what only structured types have."""
        _, order, *structure = state
        if any(part is not None for part in structure[:3]):
            raise Refused("holds an array of a structured dtype; save its fields as arrays instead")
        if order not in ("<", ">", "|", "="):
            raise Malformed("unknown byte order of an array")
        self.dtype = self.dtype.newbyteorder(order)

    def plain(self, visit: Visit) -> str:
        return self.dtype.name


class Array(Inert):
    """numpy.ndarray: made empty, and then given its contents as a state."""

    array: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        """Takes what _reconstruct makes an empty array of."""

    def __setstate__(self, state: Any) -> None:
        """Takes a version, shape, dtype, whether the bytes are in Fortran's order, and the bytes."""
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")

    def plain(self, visit: Visit) -> np.ndarray:
        if self.array is None:
            raise Malformed("an array without contents")
        return self.array


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """Returns a read-only array on `data` itself, which is a view of the file if it is long."""
    if not isinstance(dtype, Dtype) or type(shape) is not tuple or order not in ("C", "F"):
        raise Malformed("an array of unknown type, shape or order")
    if isinstance(data, str):  # Python 2's bytes
        data = data.encode("latin1")
    if not isinstance(data, bytes | memoryview):
        raise Refused("holds an array of Python objects; save it as numbers instead")
    if math.prod(map(whole, shape)) * dtype.dtype.itemsize != len(data):
        raise Malformed("an array's shape does not fit its bytes")
    return np.ndarray(shape, dtype.dtype, data, order=order)


def _array_at_once(*arguments: Any) -> Array:  # protocol 5
    array = Array()
    array.array = _array(*arguments)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, ()).item()


class Storage(Inert):
    """Elements of one type in a region of the file, whose place may be known only when the pickle has been read."""

    def __init__(self, kind: Any, count: Any, place: Callable[[], memoryview]) -> None:
        """Makes a storage of a class (a `Name`) and `count` elements; `place` gives the region's bytes."""
        name = kind.text.rpartition(".")[2] if isinstance(kind, Name) else None
        if name not in STORAGES and name != "UntypedStorage":
            raise Refused(
                f"holds tensors of the unknown dtype {quoted(getattr(kind, 'text', kind))}; save them as float32"
            )
        self.dtype = STORAGES.get(name, np.dtype(np.uint8))
        self.size, self._place = whole(count) * self.dtype.itemsize, place

    def region(self) -> memoryview:
        """Returns the bytes; fewer than its elements have are Malformed."""
        region = self._place()[: self.size]
        if len(region) < self.size:
            raise Malformed("a storage is shorter than it should be")
        return region

    def plain(self, visit: Visit) -> np.ndarray:
        return view(self.region(), self.dtype, (self.size // self.dtype.itemsize,))


class Tensor(Inert):
    """A view of a storage."""

    def __init__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = None, hooks: Any = None, meta: Any = None
    ) -> None:
        if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
            raise Malformed("a tensor without a storage, a shape or strides")
        if meta:
            raise Refused("holds a tensor that is conjugated or negated when used; save it after .resolve_conj()")
        self._storage, self.dtype, self._layout = storage, storage.dtype, (shape, strides, offset)

    def plain(self, visit: Visit) -> np.ndarray:
        return view(self._storage.region(), self.dtype, *self._layout)


def _tensor_of_new_type(*arguments: Any) -> Tensor:
    """Returns a tensor on a storage of bytes, whose type follows the first six arguments of other tensors."""
    tensor, dtype = Tensor(*arguments[:6], *arguments[7:]), arguments[6]
    name = dtype.text.removeprefix("torch.") if isinstance(dtype, Name) else None
    if name not in DTYPES:
        raise Refused("holds a tensor of an unknown dtype; save it as float32")
    tensor.dtype = DTYPES[name]
    return tensor


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Malformed("a parameter that is no tensor")
    return tensor


# The tables: {full name: what makes the value; None if the name may be mentioned, not called}.
_NUMPY = {"multiarray._reconstruct": Array, "multiarray.scalar": _scalar, "numeric._frombuffer": _array_at_once}
_BUILTINS = {"set": _set, "frozenset": _set, "bytes": _bytes, "bytearray": _bytes}
_BUILTINS |= {"complex": lambda real, imaginary: complex(float(real), float(imaginary))}
NAMES: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _bytes,
    "numpy.ndarray": None,
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.{name}": make for core in ("core", "_core") for name, make in _NUMPY.items()},
    **{f"{module}.{name}": make for module in ("builtins", "__builtin__") for name, make in _BUILTINS.items()},
}
TORCH_NAMES = {
    **NAMES,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_new_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda lengths: tuple(map(whole, lengths)),
    "torch.device": lambda kind, *index: ":".join([kind, *(str(whole(i)) for i in index)]),
    "torch.storage.UntypedStorage": None,
    **{f"torch.{name}": None for name in (*DTYPES, *STORAGES, *_QUANTISED)},
    **{f"torch.cuda.{name}": None for name in STORAGES},
}
# TorchScript says the types of lists and dicts.
TORCHSCRIPT_NAMES = {
    **TORCH_NAMES,
    "torch.jit._pickle.restore_type_tag": lambda value, *_: value,
    **{f"torch.jit._pickle.build_{kind}list": lambda value, *_: value for kind in ("int", "double", "bool", "tensor")},
}
