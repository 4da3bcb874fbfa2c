"""Reads pickles without executing them: a machine of its own for pickle's opcodes, which makes inert values only.

Python's unpickler imports and calls what a file names, and lets the file set attributes. Here a name in the file is
looked up in a table, calling it runs the function of that table, and all that the file can change are lists, dicts and
sets that it made itself and `Inert` values. A name that is in no table stands for nothing: a call of it is refused, and
so is, where it is asked for, an object of such a class. The meaning of the opcodes is that of the standard library's
pickletools.
"""

from __future__ import annotations

import codecs
import functools
import pickletools
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

from prismer_jax.weights.pickled import NAMES, Inert, Malformed, Name, Record, Refused, Truncated, Unknown, key_of

DEPTH = 100  # levels of nesting: more is an attack on recursive readers
UNPACKED = 64 << 20  # bytes that even the smallest file may unpack to
_LONG = 256  # bytes from which a string of bytes stays a view of the file


def _signed(data: memoryview) -> int:
    if len(data) > 256:
        raise Malformed("a number of more than 2048 bits")
    return int.from_bytes(data, "little", signed=True)


def _unsigned(data: memoryview) -> int:
    return int.from_bytes(data, "little")


def _digits(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))


def _in_quotes(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Malformed("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


def _text(data: memoryview) -> str:
    return str(data, "utf-8")


def _text_of_python2(data: memoryview) -> str | memoryview:
    """Python 2's str: a text or bytes, which only the reader can know. A long one is bytes."""
    return str(data, "latin1") if len(data) < _LONG else data


def _bytes(data: memoryview) -> bytes | memoryview:
    return bytes(data) if len(data) < _LONG else data


# Opcodes that push a value made of their argument alone.
_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
    "BININT": _signed,
    "BININT1": _unsigned,
    "BININT2": _unsigned,
    "LONG1": _signed,
    "LONG4": _signed,
    "INT": _digits,
    "LONG": _digits,
    "FLOAT": float,
    "BINFLOAT": lambda data: struct.unpack(">d", data)[0],
    "STRING": _in_quotes,
    "BINSTRING": _text_of_python2,
    "SHORT_BINSTRING": _text_of_python2,
    "UNICODE": lambda line: str(line, "raw-unicode-escape"),
    "BINUNICODE": _text,
    "SHORT_BINUNICODE": _text,
    "BINUNICODE8": _text,
    "BINBYTES": _bytes,
    "SHORT_BINBYTES": _bytes,
    "BINBYTES8": _bytes,
    "BYTEARRAY8": _bytes,
}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_BYTES_OF_COUNT = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _check_known(*values: Any) -> None:
    for value in values:
        if isinstance(value, Unknown):
            raise value.refused()


class Machine:
    """Runs one pickle; afterwards `end` is where the bytes after it begin."""

    def __init__(
        self,
        data: Any,
        names: Mapping[str, Callable[..., Any] | None] = NAMES,
        *,
        records: Callable[[str], bool] = lambda name: False,
        persistent: Callable[[Any], Any] | None = None,
        start: int = 0,
    ) -> None:
        """Prepares to run.

        Args:
          data: a buffer of bytes. Long strings of bytes stay views of it.
          names: what the file may name; see NAMES.
          records: whether an object of a class of this name, not in `names`, is read as its attributes; any other is
            `Unknown`.
          persistent: what a persistent id stands for.
          start: where the pickle begins in data.
        """
        self._data, self.end = memoryview(data), start
        self._names, self._records, self._persistent = names, records, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0
        self._budget = UNPACKED + 2 * len(self._data)

    def run(self) -> Any:
        """Returns what was pickled, not yet `plain`.

        Raises:
          Malformed, Refused: see there.
        """
        opcode = None
        try:
            while opcode is None or opcode.name != "STOP":
                opcode = _OPCODES[self._take(1)[0]]
                self._step(opcode.name, self._argument(opcode))
                self._steps += 1
            return self._stack.pop()
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
            raise Malformed(f"its pickle makes no sense at byte {self.end}") from None

    def plain(self, value: Any) -> Any:
        """Returns the value with arrays, dicts, ... in place of what is inert.

        Raises:
          Malformed, Refused: see there.
        """
        # A value may stand in several places, but not as in [[a, a], [a, a]] thirty levels deep.
        left, level = 100_000 + 10 * self._steps, 0
        long: dict[int, bytes] = {}

        def visit(value: Any) -> Any:
            nonlocal left, level
            left, level = left - 1, level + 1
            if level > DEPTH:
                raise Refused(f"is nested more than {DEPTH} levels deep, or contains itself, as no checkpoint is")
            if left < 0:
                raise Refused("repeats its contents too often, as only an attack on the memory does")
            if type(value) is dict:
                value = {key: visit(item) for key, item in value.items()}
            elif type(value) is list:
                value = [visit(item) for item in value]
            elif type(value) is tuple:
                value = tuple([visit(item) for item in value])
            elif type(value) is memoryview:
                if id(value) not in long:
                    long[id(value)] = bytes(value)
                value = long[id(value)]
            elif isinstance(value, Inert):
                value = value.plain(visit)
            level -= 1
            return value

        return visit(value)

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self.end:
            raise Truncated("its pickle ends in the middle")
        self.end += count
        return self._data[self.end - count : self.end]

    def _line(self) -> bytes:
        size = 256
        while True:
            chunk = bytes(self._data[self.end : self.end + size])
            if (length := chunk.find(b"\n")) >= 0:
                self.end += length + 1
                return chunk[:length].removesuffix(b"\r")
            if len(chunk) < size:
                raise Truncated("its pickle ends in the middle")
            size *= 4

    def _argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        """Returns the bytes that belong to an opcode; two lines if it takes as many."""
        if opcode.arg is None:
            return None
        if opcode.arg.n in _BYTES_OF_COUNT:
            return self._take(_unsigned(self._take(_BYTES_OF_COUNT[opcode.arg.n])))
        if opcode.arg.n != pickletools.UP_TO_NEWLINE:
            return self._take(opcode.arg.n)
        return (self._line(), self._line()) if opcode.arg is pickletools.stringnl_noescape_pair else self._line()

    def _step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _VALUES:
            push(_VALUES[name](argument))
            return
        match name:
            case "PROTO" | "FRAME" | "READONLY_BUFFER" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(self._stack))
            case "POP":
                self._pop() if self._marks[-1:] != [len(self._stack)] else self._marks.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                push(self._stack[-1])
            case "PUT":
                self._memo[int(argument)] = self._stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self._memo[_unsigned(argument)] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "GET":
                push(self._memo[int(argument)])
            case "BINGET" | "LONG_BINGET":
                push(self._memo[_unsigned(argument)])
            case "TUPLE":
                push(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple([self._pop() for _ in range(int(name[-1]))][::-1]))
            case "LIST":
                push(self._since_mark())
            case "APPEND":
                self._fill(list, [self._pop()])
            case "APPENDS":
                self._fill(list, self._since_mark())
            case "DICT":
                items = self._since_mark()
                push({})
                self._fill(dict, items)
            case "SETITEM":
                self._fill(dict, [self._pop(), self._pop()][::-1])
            case "SETITEMS":
                self._fill(dict, self._since_mark())
            case "FROZENSET":
                push(frozenset(map(key_of, self._since_mark())))
            case "ADDITEMS":
                self._fill(set, self._since_mark())
            case "GLOBAL":
                push(self._find(*(str(line, "utf-8") for line in argument)))
            case "STACK_GLOBAL":
                name, module = self._pop(), self._pop()
                push(self._find(module, name))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                push(self._call(function, arguments))
            case "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                inert = isinstance(function, Unknown) and arguments == ()  # as objects of most classes are saved
                push(Unknown(function.text) if inert else self._call(function, arguments))
            case "NEWOBJ_EX":
                keywords, arguments, function = self._pop(), self._pop(), self._pop()
                push(self._call(function, arguments if not keywords else None))
            case "INST":
                function = self._find(*(str(line, "utf-8") for line in argument))
                push(self._call(function, tuple(self._since_mark())))
            case "OBJ":
                function, *arguments = self._since_mark()
                push(self._call(function, tuple(arguments)))
            case "BUILD":
                state = self._pop()
                if isinstance(self._stack[-1], Inert):
                    self._stack[-1].build(state)
                elif type(self._stack[-1]) is not dict:  # an OrderedDict's attributes tell us nothing
                    raise Malformed("it gives a state to what can have none")
            case "PERSID":
                push(self._external(str(argument, "ascii")))
            case "BINPERSID":
                push(self._external(self._pop()))
            case _:  # EXT1, EXT2, EXT4: a registry of this process; NEXT_BUFFER: data outside of the file
                raise Refused(f"uses pickle's {name}, which refers to things that are not in the file")

    def _pop(self) -> Any:
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _fill(self, kind: type, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unknown):  # of a class that is a dict or a list in its own way
            return
        if type(target) is not kind:
            raise Malformed(f"it uses a value of type {type(target).__name__} as a {kind.__name__}")
        if kind is list:
            target.extend(items)
        elif kind is set:
            target.update(map(key_of, items))
        else:
            target.update(zip(map(key_of, items[::2]), items[1::2], strict=True))

    def _find(self, module: Any, name: Any) -> Name | Unknown:
        if type(module) is not str or type(name) is not str:
            raise Malformed("a name in it is no text")
        text = f"{module}.{name}"
        if text in self._names:
            return Name(text, self._names[text])
        if self._records(text):
            return Name(text, functools.partial(Record, text))
        return Unknown(text)

    def _call(self, function: Any, arguments: Any) -> Any:
        _check_known(function, *(arguments if type(arguments) is tuple else ()))
        if not isinstance(function, Name) or function.make is None or type(arguments) is not tuple:
            raise Malformed("it calls what is no function")
        made = function.make(*arguments)
        # Calls on one long string or list, again and again from the memo, could fill the memory or never end.
        costs = {str: 1, bytes: 1, memoryview: 1, list: 64, tuple: 64, dict: 64}
        self._budget -= sys.getsizeof(made) + sum(costs[type(a)] * len(a) for a in arguments if type(a) in costs)
        if self._budget < 0:
            raise Refused("repeats its contents too often, as only an attack on the memory does")
        return made

    def _external(self, key: Any) -> Any:
        if self._persistent is None:
            raise Malformed("it refers to a storage, but only PyTorch's own files have any")
        _check_known(*(key if type(key) is tuple else ()))
        return self._persistent(key)
