"""What a pickle may hold besides numbers, strings and containers: inert values, and the table of names that make them.

Nothing here is imported or called because a file says so: a name in a file is a key of a table such as NAMES. The
states that arrays and types are rebuilt from are those of numpy's __reduce__ and __setstate__.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

Visit = Callable[[Any], Any]


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
    """Returns a size or an offset if it is one.

    Raises:
      Malformed: it is not an integer in 0..2**63-1.
    """
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise Malformed("a size or an offset is negative or no integer")
    return value


class Inert:
    """A value under construction: `build` is all that the file can do to it, `plain` what becomes of it."""

    def build(self, state: Any) -> None:
        """Takes the state that the file gives to the value."""
        raise Malformed(f"a {type(self).__name__} is given a state")

    def plain(self, visit: Visit) -> Any:
        """Returns the value for the reader's user; `visit` does the same for values inside."""
        raise NotImplementedError


class Name(Inert):
    """A class or function that the file may mention and, if `make` is given, call."""

    def __init__(self, text: str, make: Callable[..., Any] | None) -> None:
        self.text, self.make = text, make

    def plain(self, visit: Visit) -> str:
        return self.text


class Unknown(Inert):
    """A class or function that is in no table, or an object of such a class with whatever the file puts into it.

    It may stand where nobody looks, as an options object beside the weights does. Calling it is refused at once.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def refused(self) -> Refused:
        return Refused(
            f"holds {quoted(self.text)}, which is no tensor, array or plain container; nothing of it was executed. Get "
            "weights without it, or save them again as a plain state dict: torch.save(model.state_dict(), FILE)"
        )

    def build(self, state: Any) -> None:
        pass

    def plain(self, visit: Visit) -> Any:
        raise self.refused()


class Attributes(dict):
    """The attributes of an object of the class `kind`; a plain dict in every other way."""

    kind = ""


class Record(Inert):
    """An object of a class that is not imported."""

    def __init__(self, name: str, *arguments: Any) -> None:
        if arguments:  # what they would do, only the class knows
            raise Refused(f"holds a {quoted(name)} that is made by calling it; save its attributes in a dict instead")
        self.name, self.state = name, None

    def build(self, state: Any) -> None:
        self.state = state

    def plain(self, visit: Visit) -> Any:
        state = {} if self.state is None else visit(self.state)
        if not isinstance(state, dict):
            return state
        attributes = Attributes(state)
        attributes.kind = self.name
        return attributes


class Dtype(Inert):
    """numpy.dtype of numbers, booleans or strings."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(
            r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,8})", code
        ):
            raise Refused(f"holds an array of the unknown dtype {quoted(code)}; save it as numbers instead")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Takes a version, the byte order, then what only structured types have."""
        _, order, *structure = state
        if any(part is not None for part in structure[:3]):
            raise Refused("holds an array of a structured dtype; save its fields as arrays instead")
        if order not in ("<", ">", "|", "="):
            raise Malformed("unknown byte order of an array")
        self.dtype = self.dtype.newbyteorder(order)

    def plain(self, visit: Visit) -> str:
        return self.dtype.name


def array_of(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    """Returns a read-only array on `data` itself, which is a view of the file if it is long.

    Raises:
      Malformed: the arguments do not fit each other.
      Refused: the array is one of Python objects.
    """
    if not isinstance(dtype, Dtype) or type(shape) is not tuple or order not in ("C", "F"):
        raise Malformed("an array of unknown type, shape or order")
    if isinstance(data, str):  # Python 2's bytes
        data = data.encode("latin1")
    if not isinstance(data, bytes | memoryview):
        raise Refused("holds an array of Python objects; save it as numbers instead")
    if math.prod(map(whole, shape)) * dtype.dtype.itemsize != len(data):
        raise Malformed("an array's shape does not fit its bytes")
    return np.ndarray(shape, dtype.dtype, data, order=order)


class Array(Inert):
    """numpy.ndarray."""

    def __init__(self, *_: Any) -> None:  # (class, (0,), b'b'): an empty array, for `build` to fill
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes a version, shape, dtype, whether the bytes are in Fortran's order, and the bytes."""
        _, shape, dtype, fortran, data = state
        self.array = array_of(data, dtype, shape, "F" if fortran else "C")

    def plain(self, visit: Visit) -> np.ndarray:
        if self.array is None:
            raise Malformed("an array without contents")
        return self.array


def _array_at_once(*arguments: Any) -> Array:  # protocol 5
    made = Array()
    made.array = array_of(*arguments)
    return made


def _scalar(dtype: Any, data: Any) -> Any:
    return array_of(data, dtype, ()).item()


def key_of(value: Any) -> Any:
    """Returns a dict's key or a set's member if it is flat: hashing a tuple nested a million deep crashes Python.

    Raises:
      Malformed: it is anything else.
      Refused: it is in no table.
    """
    for part in value if type(value) is tuple else (value,):
        if isinstance(part, Unknown):
            raise part.refused()
        if part is not None and type(part) not in (str, bytes, bool, int, float):
            raise Malformed(f"a key of type {type(part).__name__}")
    return value


def _dict(items: Any = ()) -> dict:
    return {key_of(key): value for key, value in (items.items() if type(items) is dict else _members(items))}


def _set(items: Any = ()) -> set:
    return {key_of(item) for item in _members(items)}


def _members(items: Any) -> list | tuple:
    if type(items) not in (list, tuple):
        raise Malformed(f"a container made of a {type(items).__name__}")
    return items


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Python 3's bytes: in protocols 0 to 2 they are a text."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"holds text in the encoding {quoted(encoding)}; only bytes are read this way")
    return text.encode("latin1") if type(text) is str else bytes(memoryview(text))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(float(real), float(imaginary))


_NUMPY = {"multiarray._reconstruct": Array, "multiarray.scalar": _scalar, "numeric._frombuffer": _array_at_once}
_BUILTINS = {"set": _set, "frozenset": _set, "bytes": _bytes, "bytearray": _bytes, "complex": _complex}

# What any pickle may name, and the function that makes it; None: it may be mentioned, not called.
NAMES: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _bytes,
    "numpy.ndarray": None,
    "numpy.dtype": Dtype,
    **{f"numpy.{core}.{name}": make for core in ("core", "_core") for name, make in _NUMPY.items()},
    **{f"{module}.{name}": make for module in ("builtins", "__builtin__") for name, make in _BUILTINS.items()},
}
