"""Reads pickles without executing them: the standard library's Unpickler, behind a closed table of classes.

It finds no class but those of the table (prismer_jax/weights/classes.py), so nothing that a file names is imported. It
does not run the file's own pickle but a translation, because it trusts a pickle in more than names: it reserves the
memory that one asks for, hashes whatever is a key, sets the attributes of whatever is on its stack, and takes classes
from a registry that all pickles of the process share. The meaning of the opcodes is that of pickletools.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import pickletools
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prismer_jax.weights.classes import (
    NAMES,
    UNPACKED,
    Inert,
    Malformed,
    Name,
    Refused,
    Truncated,
    Unknown,
    key_of,
)

DEPTH = 100  # levels of nesting: more is an attack on recursive readers
_LONG = 256  # bytes from which a string of bytes stays a view of the file
_DIGITS = 256  # bytes of a number: the time to read one grows with its square
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_COUNTS = {  # how many bytes say how long an argument is
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINE, _LINES = re.compile(rb"[^\n]*\n"), re.compile(rb"[^\n]*\n[^\n]*\n")
_STRING = (str, bytes, memoryview)
_DEEP = (dict, list, tuple, memoryview, Inert)
_STRINGS = ("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")

# Opcodes that hash a key or make an object become a persistent id, for `persistent_load` to do as it sees fit.
_PAIR, _TRIPLE = pickle.TUPLE2 + pickle.BINPERSID, pickle.TUPLE3 + pickle.BINPERSID
_TRANSLATED = {
    "SETITEM": pickle.TUPLE2 + _PAIR,  # (dict, (key, value))
    "SETITEMS": pickle.TUPLE + _PAIR,  # (dict, (key, value, key, value, ...))
    "ADDITEMS": pickle.TUPLE + _PAIR,  # (set, (member, ...))
    "DICT": pickle.TUPLE + pickle.EMPTY_DICT + _PAIR,  # ((key, value, key, value, ...), dict)
    "FROZENSET": pickle.TUPLE + pickle.EMPTY_SET + _PAIR,  # ((member, ...), set)
    "NEWOBJ": pickle.EMPTY_DICT + _TRIPLE,  # (class, arguments, keywords)
    "NEWOBJ_EX": _TRIPLE,
    "BINPERSID": pickle.TUPLE1 + pickle.BINPERSID,  # the file's own id, which so is none of the above
    "PROTO": b"",
    "FRAME": b"",
    "READONLY_BUFFER": b"",
}


def _translate(data: memoryview, start: int) -> tuple[bytearray, list[memoryview | str], int, int]:
    """Rewrites a pickle of a stranger into one that the standard library's Unpickler can be trusted with.

    Long strings become buffers beside the pickle, as of protocol 5, and so those of bytes stay in the file. The memo is
    numbered without gaps, since the Unpickler keeps an array of it.

    Returns:
      The pickle, its buffers, how many opcodes it has, and where the bytes after it begin.
    """
    code, buffers, steps, at, name = bytearray(), [], 0, start, ""
    memo: dict[int, bytes] = {}  # {number in the file: number in the translation}
    while name != "STOP":
        if at >= len(data):
            raise Truncated("its pickle ends in the middle")
        first, opcode = at, _OPCODES[data[at]]
        name, steps = opcode.name, steps + 1
        start, at = _argument(data, opcode, first + 1)
        size = at - start
        if name in _TRANSLATED:
            code += _TRANSLATED[name]
        elif name == "BYTEARRAY8" or (name in _STRINGS and size >= _LONG):
            buffers.append(data[start:at])
            code += pickle.NEXT_BUFFER
        elif name in ("BINUNICODE", "BINUNICODE8") and size >= _LONG:  # once more than other strings are copied
            buffers.append(str(data[start:at], "utf-8"))
            code += pickle.NEXT_BUFFER
        elif name == "MEMOIZE" or name.endswith("PUT"):
            number = len(memo) if name == "MEMOIZE" else _number(name, data[start:at])
            code += pickle.LONG_BINPUT + memo.setdefault(number, struct.pack("<I", len(memo)))
        elif name.endswith("GET"):
            code += pickle.LONG_BINGET + memo[_number(name, data[start:at])]
        elif name in ("INT", "LONG", "LONG4") and size > _DIGITS:
            raise Malformed(f"a number of more than {_DIGITS} bytes")
        elif name in ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER"):
            raise Refused(f"uses pickle's {name}, which refers to things that are not in the file")
        else:
            code += data[first:at]
    return code, buffers, steps, at


def _argument(data: memoryview, opcode: pickletools.OpcodeInfo, start: int) -> tuple[int, int]:
    """Returns where the bytes of an opcode's argument begin and end."""
    kind = opcode.arg
    if kind is None:
        return start, start
    if kind.n == pickletools.UP_TO_NEWLINE:
        lines = (_LINES if kind is pickletools.stringnl_noescape_pair else _LINE).match(data, start)
        end = lines.end() if lines else sys.maxsize
    elif kind.n in _COUNTS:
        count, start = start, start + _COUNTS[kind.n]
        end = start + int.from_bytes(data[count:start], "little")
    else:
        end = start + kind.n
    if end > len(data):
        raise Truncated("its pickle ends in the middle")
    return start, end


def _number(name: str, argument: memoryview) -> int:
    """Returns a number of the memo: digits, or bytes."""
    return int(bytes(argument)) if name in ("PUT", "GET") else int.from_bytes(argument, "little")


class Unpickler(pickle.Unpickler):
    """Reads one pickle; afterwards `end` is where the bytes after it begin."""

    def __init__(
        self,
        data: memoryview,
        names: Mapping[str, Callable[..., Any] | None] = NAMES,
        *,
        records: Callable[[str], Any] = lambda name: False,
        storage: Callable[..., Any] | None = None,
        start: int = 0,
    ) -> None:
        """Prepares to read.

        Args:
          data: bytes, of which long strings stay views.
          names: what the file may name; see NAMES.
          records: whether an object of a class of this name, not in `names`, is read as its attributes.
          storage: what a persistent id of PyTorch's stands for, called with its class, name, count and what follows.
          start: where the pickle begins in data.

        Raises:
          Malformed, Refused: see there.
        """
        with _sense():
            code, buffers, self._steps, self.end = _translate(data, start)
        super().__init__(io.BytesIO(code), encoding="latin1", buffers=buffers)
        self._names, self._records, self._storage = names, records, storage
        self._call = _metered(UNPACKED + 2 * len(data))

    def load(self) -> Any:
        """Returns what was pickled, not yet `plain`; raises Malformed or Refused."""
        with _sense():
            return super().load()

    def find_class(self, module: str, name: str) -> Name | Unknown:
        """Returns what stands for a name in the file; the standard library's method would import it."""
        text = f"{module}.{name}"
        if text in self._names:
            return Name(text, self._names[text] and functools.partial(self._call, self._names[text]))
        return Unknown(text, bool(self._records(text)))

    def persistent_load(self, key: Any) -> Any:
        """Returns a storage, or does what _TRANSLATED says."""
        match key:
            case (dict() as target, tuple() as items) | (tuple() as items, dict() as target):
                target.update(zip(map(key_of, items[::2]), items[1::2], strict=True))
                return target
            case (set() as target, tuple() as items) | (tuple() as items, set() as target):
                target.update(map(key_of, items))
                return target
            case (Unknown() as target, tuple()):  # a dict or a set in its own way
                return target
            case (Unknown() as kind, (), dict() as keywords) if not keywords:  # as objects of most classes are saved
                return Unknown(kind.text, kind.record)
            case (Name() | Unknown() as kind, tuple() as arguments, dict() as keywords):
                return kind(*arguments, **keywords)
            case (("storage", Unknown() as kind, *_),):
                raise kind.refused()
            case (("storage", kind, str() as name, _, count, *rest),) if self._storage:
                return self._storage(kind, name, count, *rest)
        raise Malformed("it refers to what is no storage of a file of PyTorch")

    def plain(self, tree: Any) -> Any:
        """Returns what was pickled, or a part of it, with arrays, dicts ... in place of what is inert.

        A value that stands in several places is one value in the result too, counted as often as it stands somewhere.

        Raises:
          Malformed, Refused: see there.
        """
        values: dict[int, tuple[Any, int]] = {}  # {id: (plain value, how many are in it)}
        left, level = 100_000 + 10 * self._steps, 0

        def visit(value: Any) -> Any:
            nonlocal left, level
            if id(value) in values:
                value, count = values[id(value)]
                left -= count
            elif isinstance(value, _DEEP):
                key, before, level = id(value), left, level + 1
                if level > DEPTH:
                    raise Refused(f"is nested more than {DEPTH} levels deep, or contains itself, as no checkpoint is")
                value = _plain(value, visit)
                left, level = left - 1, level - 1
                values[key] = value, before - left
            else:
                left -= 1
            if left < 0:
                raise Refused("repeats its contents too often, as only an attack on the memory does")
            return value

        with _sense():
            result = visit(tree)
        values.clear()  # `visit` refers to itself, and so would hold them until the next collection of garbage
        return result


def _metered(budget: int) -> Callable[..., Any]:
    """Returns a function that calls others, until the bytes that they take and make are more than the budget.

    Calls on one long string or list, again and again from the memo, could fill the memory or never end.
    """

    def call(make: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal budget
        result = make(*arguments)
        sizes = [len(a) * (1 if isinstance(a, _STRING) else 64) for a in arguments if hasattr(a, "__len__")]
        budget -= sys.getsizeof(result) + sum(sizes)
        if budget < 0:
            raise Refused("repeats its contents too often, as only an attack on the memory does")
        return result

    return call


def _plain(value: Any, visit: Callable[[Any], Any]) -> Any:
    if isinstance(value, Inert):
        return value.plain(visit)
    if isinstance(value, dict):
        return {key: visit(item) for key, item in value.items()}
    if isinstance(value, memoryview):
        return bytes(value)
    items = [visit(item) for item in value]
    return items if isinstance(value, list) else tuple(items)


@contextlib.contextmanager
def _sense() -> Iterator[None]:
    try:
        yield
    except (pickle.UnpicklingError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError):
        raise Malformed("its pickle makes no sense") from None
