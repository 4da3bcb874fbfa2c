"""Attacks: files that would run a program, fill the memory or never end if they were unpickled as Python does it."""

import contextlib
import copyreg
import gc
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.weights import safe, testing
from prismer_jax.weights.classes import UNPACKED, Attributes
from prismer_jax.weights.testing import call, group, item, mapping, name, tensor, torch_older, torch_zip, whole


def attacks(canary):
    """{name that must stand in the error: piece of a pickle that would make the file `canary`, or help to}."""
    command, program = item(f"touch {canary}"), item(f"open({str(canary)!r}, 'w')")
    called = {
        "os.system": command,
        "posix.system": command,
        "subprocess.getoutput": command,
        "builtins.eval": program,
        "__builtin__.eval": program,
        "builtins.exec": program,
        "builtins.open": item(str(canary)) + item("w"),
        "builtins.__import__": item("os"),
        "importlib.import_module": item("os"),
        "builtins.getattr": name("collections.OrderedDict") + item("__init__"),
        "operator.attrgetter": item("__globals__"),
        "functools.partial": name("collections.OrderedDict"),
        "copyreg._reconstructor": name("collections.OrderedDict"),
        "torch.load": item(str(canary)),
        "torch.hub.load": item(str(canary)),
        "torch._utils._rebuild_wrapper_subclass": item(()),
        "torch.jit._pickle.build_anything": item(()),
        "numpy.load": item(str(canary)),
        "numpy.core.records.fromfile": item(str(canary)),
        "_codecs.decode": item(b"x") + item("zip"),
        "sklearn.decomposition._pca.PCA": b"",
    }
    pieces = {text: call(text, argument) for text, argument in called.items()}
    dotted = {
        "collections.OrderedDict.__init__.__globals__": "OrderedDict.__init__.__globals__",
        "collections.\\x1b[31m\\n": "\x1b[31m\n",
    }
    pieces |= {text: item("collections") + item(attribute) + b"\x93)R" for text, attribute in dotted.items()}
    pieces["os.popen"] = b"(" + command + b"ios\npopen\n"  # INST
    pieces["os.execl"] = b"(" + name("os.execl") + command + b"o"  # OBJ
    pieces["os.spawnl"] = name("os.spawnl") + group(command) + b"\x81"  # NEWOBJ
    pieces["os.spawnv"] = name("os.spawnv") + group(command) + b"}\x92"  # NEWOBJ_EX
    return pieces


STORAGE = group(item("storage"), name("torch.FloatStorage"), item("0"), item("cpu"), item(1))
PLACES = {
    "alone": lambda piece: piece,
    "in a list": lambda piece: b"]" + piece + b"a",
    "in a dict": lambda piece: mapping({"a": item(1), "b": mapping({"c": piece})}),
    "as a key": lambda piece: b"}" + piece + item(1) + b"s",
    "in a state": lambda piece: call("collections.OrderedDict") + mapping({"_metadata": piece}) + b"b",
    "in an argument": lambda piece: call("collections.OrderedDict", b"]" + piece + b"a"),
    "in an array": lambda piece: call("numpy.core.multiarray._reconstruct") + group(item(1), piece) + b"b",
    "as a persistent id": lambda piece: piece + b"Q",
    "in a persistent id": lambda piece: group(item("storage"), piece, item("0"), item("cpu"), item(1)) + b"Q",
    "and thrown away": lambda piece: piece + b"0N",
}
SCRIPT = {"constants.pkl": whole(b")"), "code/__torch__.py": b"import os"}
FILES = {
    "pickle": lambda piece: whole(piece),
    "torch zip": lambda piece: torch_zip(whole(piece), {"0": b"0000"}),
    "torch script": lambda piece: torch_zip(whole(testing.instance("__torch__.Net", {"x": piece})), {}, more=SCRIPT),
    "torch older": lambda piece: torch_older(whole(piece), {}),
    "torch older, its version": lambda piece: torch_older(b"", {}).replace(testing.MAGIC, testing.MAGIC + whole(piece)),
    "torch older, its list of storages": lambda piece: torch_older(whole(b"}"), {})[:-4] + piece + b".",
}


def read(folder, data, **kwargs):
    path = folder / "weights"
    path.write_bytes(data)
    return safe.load_tree(path, **kwargs)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("what", FILES)
def test_what_a_file_would_execute_is_named_and_nothing_happens(tmp_path, what, where):
    canary = tmp_path / "canary"
    for text, piece in attacks(canary).items():
        with pytest.raises(UserError) as raised:
            read(tmp_path, FILES[what](PLACES[where](piece)))
        message = str(raised.value)
        assert f"holds '{text}'" in message
        assert "nothing of it was executed" in message
        assert message.isprintable()
    assert not canary.exists()


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler falls for them."""
    canary = tmp_path / "canary"
    for data in (pickle.dumps([Evil(canary)]), whole(PLACES["in a state"](attacks(canary)["os.system"]))):
        with contextlib.suppress(Exception):
            pickle.loads(data)
        assert canary.exists()
        canary.unlink()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_that_run_a_program_are_refused_in_every_protocol(tmp_path, protocol):
    canary = tmp_path / "canary"
    for tree in (Evil(canary), {"model": {"x": np.ones(3), "y": [(Evil(canary),)]}}):
        with pytest.raises(UserError, match=f"holds '{os.system.__module__}.system'"):
            read(tmp_path, pickle.dumps(tree, protocol))
    assert not canary.exists()


REBUILD = "torch._utils._rebuild_tensor_v2"
SELF = mapping({"make": item(1), "text": item(2), "__setstate__": item(3), "__class__": item(4)})


@pytest.mark.parametrize(
    "piece",
    [
        name(REBUILD) + SELF + b"b",  # attributes for what may be called
        name("collections.OrderedDict") + SELF + b"b",
        name("numpy.ndarray") + group(b"N", SELF) + b"b",
        tensor("0", "Float", 1, (1,), (1,)) + SELF + b"b",
        call("numpy.dtype", item("f4")) + SELF + b"b",
        item([1]) + SELF + b"b",
        item("text") + item(()) + b"R",  # calls of what is no function
        call("collections.OrderedDict") + b")R",
        name("numpy.ndarray") + item((2**40,)) + b"R",
        name("torch.FloatStorage") + item((2**40,)) + b"R",
        name("collections.OrderedDict") + item(5) + b"R",
        name("collections.OrderedDict") + b")" + mapping({"x": item(1)}) + b"\x92",
        call("_codecs.encode", item("touch"), item("rot13")),  # admitted calls with other arguments
        call("_codecs.encode", item("touch"), item(["latin1"])),
        call("builtins.bytearray", item(2**40)),
        call("builtins.set", item(5)),
        call("numpy.dtype", item("O8")),
        call("numpy.dtype", item([("a", "f4")])),
        call("numpy.dtype", name("numpy.ndarray")),
        call("numpy.core.multiarray.scalar", call("numpy.dtype", item("f8")), item("x" * 9)),
        call("numpy.core.numeric._frombuffer", item([1]), call("numpy.dtype", item("f8")), item((1,)), item("C")),
        call("numpy.core.numeric._frombuffer", item(b"x" * 8), call("numpy.dtype", item("f8")), item((-1,)), item("C")),
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), item((2**40,)), item(b"d")),
        call("torch._utils._rebuild_parameter", item([1]), b"\x89", item({})),
        call(REBUILD, item("0"), item(0), item((1,)), item((1,)), b"\x89", item({})),
        call("torch.device", item([1]), item(0)),
        group(item("module"), name("collections.OrderedDict"), item("x.py"), item("source")) + b"Q",
        group(item("storage"), item("FloatStorage"), item("0"), item("cpu"), item(1)) + b"Q",
        group(item("storage"), name(REBUILD), item("0"), item("cpu"), item(1)) + b"Q",
        group(item("storage"), name("torch.FloatStorage"), item("../data.pkl"), item("cpu"), item(1)) + b"Q",
        b"Pzero\n",
        b"}" + item(("a", 1)) + b"\x86Q",  # the ids that the reader makes itself
        b"}" + item(("a", 1)) + b"Q",
        name("collections.OrderedDict") + b")}\x87Q",
        b"\x97",  # a buffer outside of the file
        b"\x82\xf0",  # an extension code; see below
        b"h\x07",  # not in the memo
        b"",  # an empty stack
        b"t",  # no mark
        b"\xff",  # no opcode
        item("text") + item("x") + item(1) + b"s",  # a dict's operation on a str
        b"}" + item(1) + b"a",
        b"}(" + item(1) + b"u",
        b"Ix\n",
        b"S'x\n",
        b"\x8c\x01\xff",
    ],
)
def test_no_operation_has_another_effect_than_on_plain_data(tmp_path, piece):
    copyreg.add_extension("os", "system", 0xF0)
    try:
        for file in (whole, lambda pickled: torch_zip(whole(pickled), {"0": b"0000"})):
            with pytest.raises(UserError, match=r"weights: (is damaged|is cut short|holds|uses)"):
                read(tmp_path, file(piece))
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_an_admitted_record_has_no_methods(tmp_path):
    state = {"__setstate__": item("x"), "__class__": name("collections.OrderedDict"), "__reduce__": item(())}
    record = read(tmp_path, whole(testing.instance("my.Class", state)), records=("my.Class",))
    assert type(record) is Attributes
    assert record == {"__setstate__": "x", "__class__": "collections.OrderedDict", "__reduce__": ()}
    with pytest.raises(UserError, match=r"holds 'my\.Class'"):
        read(tmp_path, whole(call("my.Class", item("touch"))), records=("my.Class",))
    with pytest.raises(UserError, match=r"holds 'my\.Other'"):
        read(tmp_path, whole(testing.instance("my.Other", state)), records=("my.Class",))


def keep(piece):
    """The piece, as number 7 of the memo."""
    return piece + b"q\x07"


MANY = 20_000
DEEP = b")" + b"\x85" * MANY  # a tuple in a tuple in ...
CRASH = b")" + b"\x85" * 200_000  # so deep that Python's own hash of it overflows the stack
LEVELS = [b"q%c0](%se" % (n, b"h%c" % n * 10) for n in range(60)]  # ten times the list before, in a list
BOMBS = {
    "lists of the same lists": b"]" + b"".join(LEVELS),
    "lists in lists": b"]" * MANY + b"a" * (MANY - 1),
    "tuples in tuples": DEEP,
    "dicts in dicts": b"}" + b"K\x00}" * MANY + b"s" * MANY,
    "a list in itself": keep(b"]") + b"h\x07a",
    "a deep key": b"}" + CRASH + b"Ns",
    "a long key": b"}(" + keep(item(tuple(range(10**5)))) + b"N" + b"h\x07N" * 10_000 + b"u",
    "a deep member of a set": b"\x8f(" + CRASH + b"\x90",
    "a deep name": DEEP + DEEP + b"\x93",
    "a deep type": call("numpy.dtype", DEEP),
    "a deep encoding": call("_codecs.encode", item("x"), DEEP),
    "a deep storage": group(item("storage"), name("torch.FloatStorage"), DEEP, item("cpu"), item(1)) + b"Q",
    "a long string": b"\x8e" + struct.pack("<Q", 2**62),
    "a long text": b"X" + struct.pack("<I", 2**32 - 1) + b"x",
    "a long number": b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6,
    "many digits": b"I" + b"9" * 10**6 + b"\n",
    "a long name": b"c" + b"a" * 10**6 + b"\nb\n",
    "a line without end": b"c" + b"a" * 10**6,
    "bytes made again and again": keep(item("x" * 10**6))
    + (name("_codecs.encode") + b"h\x07" + item("latin1") + b"\x86R") * 10_000,
    "sets made again and again": keep(item(list(range(10**5)))) + (name("builtins.set") + b"h\x07\x85R") * 10_000,
    "dicts made again and again": keep(item([("x", 1)] * 10**5))
    + (name("collections.OrderedDict") + b"h\x07\x85R") * 10_000,
    "arrays without contents": b"](" + call("numpy.core.multiarray._reconstruct") * 10 + b"e",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_little_time_and_memory(tmp_path, bomb):
    for file in (whole, lambda piece: torch_zip(whole(piece), {})):
        with testing.bounded(300), pytest.raises(UserError) as raised:
            read(tmp_path, file(BOMBS[bomb]))
        assert len(str(raised.value)) < 600


def test_a_far_place_in_the_memo_takes_no_memory(tmp_path):
    far = b"\xff\xff\xff\x7f"
    with testing.bounded(10):
        assert read(tmp_path, whole(item(3) + b"r" + far + b"0j" + far)) == 3


def test_a_long_string_may_stand_in_many_places(tmp_path):
    """Aliases are no attack, and cost no copies."""
    with testing.bounded(20):
        tree = read(
            tmp_path, whole(b"](" + keep(b"B" + struct.pack("<I", 10**6) + b"x" * 10**6) + b"h\x07" * 1000 + b"e")
        )
    assert len(tree) == 1001
    assert tree[-1] == b"x" * 10**6


def many(unit, head=b""):
    """A list of as many values as fit into 30 kB."""
    return head + b"](" + unit * (30_000 // len(unit)) + b"e"


ROOM = {"0": b"0000"}
DENSE = {
    "dicts": whole(many(b"}")),
    "lists": whole(many(b"]")),
    "sets": whole(many(b"\x8f")),
    "lists in tuples": whole(many(b"]\x85")),
    "values in the memo": whole(many(b"]\x94")),
    "dicts that are called": whole(many(b"h\x00)R", name("collections.OrderedDict") + b"q\x000")),
    "storages": torch_zip(whole(many(b"h\x00Q", STORAGE + b"q\x000")), ROOM),
    "keys": testing.safetensors({f"{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(500)}),
}


@pytest.mark.parametrize("what", DENSE)
def test_a_file_takes_at_most_500_times_its_size_of_memory(tmp_path, what):
    read(tmp_path, DENSE[what])  # what is imported and cached once
    tracemalloc.start()
    try:
        read(tmp_path, DENSE[what])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500 * len(DENSE[what])


def test_a_file_leaves_memory_with_the_last_array(tmp_path):
    """Without waiting for Python to find circles of references."""
    data = pickle.dumps({"x": np.zeros(10**6, np.uint8)}, 2)
    read(tmp_path, data)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        read(tmp_path, data)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert left < 10**5 < 10**6 < peak


def test_a_pickle_is_no_larger_than_the_file_it_is_packed_in(tmp_path):
    """One in a small file could else make 300 times as much as the file unpacks to."""
    data = torch_zip(whole(b"](" + b"}" * (2 << 20) + b"e"), {}, how=zipfile.ZIP_DEFLATED)
    assert len(data) < 1 << 14
    with testing.bounded(20), pytest.raises(UserError, match="a pickle larger than itself"):
        read(tmp_path, data)


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    zeros = bytes(UNPACKED + 1)
    for data in (
        testing.zipped({"x.npy": zeros}, zipfile.ZIP_DEFLATED),
        torch_zip(whole(tensor("0", "Byte", len(zeros), (1,), (1,))), {"0": zeros}, how=zipfile.ZIP_DEFLATED),
    ):
        assert len(data) < 1 << 20
        with testing.bounded(10), pytest.raises(UserError, match="hundred times its size"):
            read(tmp_path, data)
        # A table of contents that lies about it.
        lie = data.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 1000))
        with testing.bounded(10), pytest.raises(UserError, match="is damaged"):
            read(tmp_path, lie)
