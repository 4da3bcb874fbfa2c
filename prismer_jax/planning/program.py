"""What a compiled program does, read from its text: operations, bytes of memory, messages between devices.

XLA's own count (`compiled.cost_analysis()`) takes the body of a loop once, and a scanned model is nothing but loops.
Here every instruction counts as often as it runs. The text is XLA's HLO; what TPUs make of it is in its operators:
matrix products are convolutions, and a reduce-scatter is a fusion of the name all-reduce-scatter.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64}  # others end with their number of bits
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What moves nothing by itself.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "iota"}
FREE |= {"after-all", "partition-id", "replica-id", "custom-call", "opt-barrier", "async-start", "async-update"}
KERNEL = 'custom_call_target="tpu_custom_call"'  # a custom call that is not free
# Matrix products in the kernels of `towers.fused_attention`, forward and backward, each of queries x keys x channels.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*->.*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


class Instruction(NamedTuple):
    """One line: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def op_name(self) -> str:
        """The line of the model that it comes from, as JAX names it."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else self.name


class Collective(NamedTuple):
    """A message between devices.

    Attributes:
      kind: one of KINDS.
      bytes: of the whole array on one device: what all-gather gives, what the others take.
      group: the devices that take part, as numbers in the mesh; one of the groups, all are alike.
      count: how often it runs in a step.
      op_name: where it comes from.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    count: int
    op_name: str

    @property
    def sent(self) -> float:
        """Bytes that a device must at least receive in a step: as rings do it, Thakur et al. 2005."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.bytes * self.count * share


Program = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """Returns ({computation: instructions}, the name of the entry) of the text of an HLO module."""
    program: Program = {}
    entry, body = "", None
    for line in re.sub(r'\n(?="|}})', " ", text).splitlines():  # a kernel's attributes take several lines
        if body is None:
            if (head := _HEAD.match(line)) is not None:
                body = program.setdefault(head[1], [])
                entry = head[1] if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            body = None
        elif " = " in line:
            body.append(_instruction(line.strip()))
    return program, entry


def _instruction(line: str) -> Instruction:
    left, _, right = line.partition(" = ")
    root, name = left.startswith("ROOT "), left.split()[-1].lstrip("%")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, right = right[:end], right[end:].lstrip()
    opened = right.index("(")
    closed = _closing(right, opened)
    operands = tuple(re.findall(r"%([\w.\-]+)", right[opened:closed]))
    if (opcode := right[:opened]) in ("constant", "parameter"):
        operands = (right[opened + 1 : closed],)
    return Instruction(name, shape, opcode, operands, right[closed + 1 :], root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text) - 1


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], bool]]:
    """Returns [(type, dimensions, whether it lies in HBM)] of a shape or tuple; S(1) and above are on the chip."""
    found = _ARRAY.findall(shape)
    return [(t, tuple(map(int, dims.split(","))) if dims else (), "S(" not in layout) for t, dims, layout in found]


def size(shape: str, hbm: bool = False) -> float:
    """Returns the bytes of a shape, without the padding of its layout; only what lies in HBM, if so asked."""
    return sum(_bits(t) / 8 * math.prod(dims) for t, dims, outside in arrays(shape) if outside or not hbm)


def _bits(kind: str) -> int:
    return BITS.get(kind) or int((re.findall(r"\d+", kind) or [0])[0])  # a token has none


def runs(program: Program, entry: str) -> dict[str, int]:
    """Returns {computation: how often it runs in a step}; the bodies of loops as often as their conditions say."""
    counts = dict.fromkeys(program, 0)

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for one in program[name]:
            inner = times * _trips(program, one) if one.opcode == "while" else times
            if one.opcode not in ("reduce", "scatter", "sort", "all-reduce", "reduce-window", "map"):
                for called in _called(one):
                    if called in program:
                        visit(called, inner)

    visit(entry, 1)
    return counts


def _called(one: Instruction) -> list[str]:
    branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    return [*_CALLS.findall(one.rest), *(re.findall(r"%?([\w.\-]+)", branches[1]) if branches else ())]


def _trips(program: Program, loop: Instruction) -> int:
    """Returns how often a loop runs: its counter goes from 0 to what its condition compares it with, in its own steps.

    JAX's scans count by 1. A product whose operand is gathered on the way is a loop of XLA's that does two parts at
    once on a TPU and counts by 2.
    """
    if (known := re.search(r"known_trip_count[^0-9]*(\d+)", loop.rest)) is not None:
        return int(known[1])
    condition, body = (
        {one.name: one for one in program.get(match[1], [])} if match else {}
        for match in (re.search(rf"{part}=%?([\w.\-]+)", loop.rest) for part in ("condition", "body"))
    )
    bound = max(filter(None, map(_number, condition.values())), default=1)
    return -(-bound // _step(condition, body))


def _step(condition: dict[str, Instruction], body: dict[str, Instruction]) -> int:
    """Returns what a loop adds to its counter, the part of its state that the condition compares; 1 if none is seen."""
    compared = [condition[name] for one in condition.values() if one.root for name in one.operands if name in condition]
    places = [re.search(r"index=(\d+)", one.rest) for one in compared if one.opcode == "get-tuple-element"]
    result = next((one.operands for one in body.values() if one.root and one.opcode == "tuple"), ())
    if not places or places[0] is None or int(places[0][1]) >= len(result):
        return 1
    counter = body.get(result[int(places[0][1])])
    added = [_number(body[name]) for name in counter.operands if name in body] if counter else []
    return max(filter(None, added), default=1) if counter and counter.opcode == "add" else 1


def _number(one: Instruction) -> int | None:
    """Returns the value of an integer constant."""
    return int(one.operands[0]) if one.opcode == "constant" and one.operands[0].isdigit() else None


# ---------------------------------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------------------------------


def products(program: Program, counts: dict[str, int]) -> Iterator[tuple[float, str, str]]:
    """Yields (floating-point operations a step, type of the operands, op_name) of each matrix product."""
    for name, body in program.items():
        if counts[name]:
            shapes = {one.name: one.shape for one in body}
            for one in body:
                if one.opcode in ("convolution", "dot"):
                    left, right = (arrays(shapes[operand])[0] for operand in one.operands[:2])
                    kind = "f32" if left[0] == right[0] == "f32" else "bf16"
                    yield counts[name] * _flops(one, left[1], right[1]), kind, one.op_name
                elif KERNEL in one.rest:
                    number = next((n for kernel, n in PRODUCTS.items() if one.name.startswith(kernel)), 0)
                    given = [x for operand in one.operands for x in arrays(shapes[operand])]
                    q, k = [x for x in given if x[0] in ("bf16", "f32") and len(x[1]) > 2][:2]  # masks are integers
                    yield counts[name] * number * 2.0 * math.prod(q[1]) * k[1][-2], q[0], one.op_name


def _flops(one: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    out = arrays(one.shape)[0][1]
    if one.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        contracted = [left[int(axis)] for axis in match[1].split(",") if axis] if match else []
        return 2.0 * math.prod(out) * math.prod(contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert labels is not None, one.rest
    ours, kernel, result = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    settings = dict(item.split("=") for item in window[1].split()) if window else {}
    total = 2.0 * out[result.index("b")] * out[result.index("f")] * right[kernel.index("i")]
    for axis in range(len(kernel) - 2):
        digit = str(axis)
        sizes = left[ours.index(digit)], right[kernel.index(digit)], out[result.index(digit)]
        stride, dilation, kernel_dilation = (
            int(settings[key].split("x")[axis]) if key in settings else 1
            for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(settings["pad"].split("x")[axis].split("_")[0]) if "pad" in settings else 0
        total *= positions(*sizes, stride, dilation, kernel_dilation, low)
    return total


@functools.cache
def positions(size: int, kernel: int, out: int, stride: int, dilation: int, kernel_dilation: int, low: int) -> int:
    """Returns how many pairs of a place in the result and one in the kernel meet a value, and no zero between them."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - low
    return int(((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Memory and messages
# ---------------------------------------------------------------------------------------------------------------------


def traffic(program: Program, counts: dict[str, int], entry: str) -> float:
    """Returns about how many bytes a step moves between HBM and the chip: operands and results, slices as slices."""
    inside = {called for body in program.values() for one in body if one.opcode == "fusion" for called in _called(one)}
    total = 0.0
    for name, body in program.items():
        if counts[name] and name not in inside:
            shapes = {one.name: one.shape for one in body}
            total += counts[name] * sum(_moved(program, one, shapes) for one in body)
    return total + _messages(program, counts, inside)


def _messages(program: Program, counts: dict[str, int], fused: set[str]) -> float:
    """Returns the bytes that messages within fusions read and write: one that hides behind several is one, by channel.

    A reduce-scatter's result is written by its fusion.
    """
    moved: dict[str, float] = {}
    for name in fused:
        shapes = {one.name: one.shape for one in program[name]}
        for one in program[name]:
            if one.opcode in KINDS:
                shape = "" if "all-reduce-scatter" in name else one.shape
                once = size(shape, hbm=True) + sum(size(shapes[operand], hbm=True) for operand in one.operands)
                channel = re.search(r"channel_id=(\d+)", one.rest)
                key = channel[1] if channel else f"{name}/{one.name}"
                moved[key] = max(moved.get(key, 0.0), counts[name] * once)
    return sum(moved.values())


def _moved(program: Program, one: Instruction, shapes: dict[str, str]) -> float:
    if (one.opcode in FREE and KERNEL not in one.rest) or one.opcode.endswith("-done"):
        return 0.0
    given = [shapes[operand] for operand in one.operands if operand in shapes]
    if one.opcode in ("copy-start", "slice-start"):
        return size(one.shape, hbm=True)  # (to, from, ...), of which one is on the chip
    if one.opcode == "dynamic-update-slice":
        return 2 * size(given[1], hbm=True)
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * size(one.shape, hbm=True)
    called = next((name for name in _called(one) if name in program), None)
    if one.opcode != "fusion" or called is None:
        return size(one.shape, hbm=True) + sum(size(shape, hbm=True) for shape in given)
    used = [min(_used(program, called, i), size(shape, hbm=True)) for i, shape in enumerate(given)]
    return sum(used) + min(_written(program, called), size(one.shape, hbm=True))


def _used(program: Program, name: str, number: int) -> float:
    """Returns how many bytes of its parameter a fused computation reads."""
    body = program[name]
    parameter = next(one for one in body if one.opcode == "parameter" and one.operands[0] == str(number))
    names, total = {parameter.name}, 0.0
    for one in body:  # in the order of their use
        if names.isdisjoint(one.operands) or one.opcode == "parameter":
            continue
        if one.opcode == "bitcast":
            names.add(one.name)
        elif one.opcode in ("dynamic-slice", "slice", "gather"):
            total += size(one.shape)
        elif one.opcode == "dynamic-update-slice" and one.operands[0] in names:
            names.add(one.name)  # what is not written stays where it is
        elif one.opcode == "fusion":
            called = next(called for called in _called(one) if called in program)
            total += sum(_used(program, called, i) for i, operand in enumerate(one.operands) if operand in names)
        elif one.opcode not in ("custom-call", "tuple", *KINDS):
            return math.inf
    return total


def _written(program: Program, name: str) -> float:
    """Returns how many bytes a fused computation writes: of what it updates, the part; of what it passes on, none."""
    body = {one.name: one for one in program[name]}
    root = next(one for one in body.values() if one.root)
    total = 0.0
    for part in root.operands if root.opcode == "tuple" else (root.name,):
        result = body[part]
        while result.opcode == "bitcast":
            result = body[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            total += size(body[result.operands[1]].shape)
        elif result.opcode not in ("parameter", *KINDS):  # a message is counted by itself
            total += size(result.shape, hbm=True)
    return total


def collectives(program: Program, counts: dict[str, int], devices: int) -> list[Collective]:
    """Returns the messages between devices in a step, the largest first."""
    unique: dict[tuple[str, str], Collective] = {}
    callers = {name: one.op_name for body in program.values() for one in body for name in _called(one)}
    for name, body in program.items():
        if not counts[name]:
            continue
        shapes = {one.name: one.shape for one in body}
        scatters = "all-reduce-scatter" in name
        for one in body:
            between = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest) if one.opcode == "send" else None
            kind = between[1].lower().replace("_", "-") if between else one.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            group = _group_of_slices(one.rest, devices) if between else _group(one.rest, devices)
            given = sum(size(shapes[operand]) for operand in one.operands if operand in shapes)
            kind = "reduce-scatter" if scatters and kind == "all-reduce" else kind
            given *= len(group) if kind == "all-gather" else 1
            op_name = callers.get(name, one.op_name) if scatters else one.op_name
            message = Collective(kind, given, group, counts[name], op_name)
            # A message that is hidden behind computation is cut into several fusions of one channel.
            channel = re.search(r"channel_id=(\d+)", one.rest)
            key = (kind, channel[1] if channel else f"{name}/{one.name}")
            if len(group) > 1 and (key not in unique or unique[key].count < message.count):
                unique[key] = message
    return sorted(unique.values(), key=lambda one: -one.sent)


def _group(rest: str, devices: int) -> tuple[int, ...]:
    """Returns the first group of `replica_groups`, in any of the ways in which XLA writes them."""
    if (match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)) is not None:
        return int(match[1]), int(match[2])
    named = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? *\{([^}]*)\}"
    if (match := re.search(named, rest)) is not None:
        axes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", match[1]))
        chosen = re.findall(r"'?([\w.]+)'?", match[3])
        numbers = _numbers(match[2] or f"[{devices}]").reshape([int(extent) for extent in axes.values()])
        return tuple(numbers[tuple(slice(None) if axis in chosen else 0 for axis in axes)].ravel().tolist())
    if (match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[\S*?\](?:T\([\d,]+\))?)", rest)) is not None:
        return tuple(_numbers(match[2]).reshape([int(n) for n in match[1].split(",")])[0].tolist())
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return tuple(map(int, match[1].split(","))) if match and match[1] else tuple(range(devices))


def _numbers(text: str) -> np.ndarray:
    """Returns the devices in an order: '0,2,1,3', or '[2,2]T(1,0)', which counts up in an array that is transposed."""
    lists = [[int(n) for n in part.split(",")] for part in re.findall(r"[\d,]+", text)]
    if not text.startswith("["):
        return np.array(lists[0])
    shape, *order = lists
    return np.arange(math.prod(shape)).reshape(shape).transpose(order[0] if order else range(len(shape)))


def _group_of_slices(rest: str, devices: int) -> tuple[int, ...]:
    """Returns the like devices of all slices, which a message through the hosts joins; a mesh has slice after slice."""
    match = re.search(r'_xla_megascale_target="\{([\d,]+)\}', rest)
    slices = len(match[1].split(",")) if match else devices
    return tuple(range(0, devices, devices // slices))


def facts(text: str, devices: int) -> dict[str, Any]:
    """Returns what a step does on one device, as plain numbers.

    `flops` and `flops_float32` (of products whose operands are float32), `products`, the five largest in float32,
    `traffic` (bytes of HBM), and `collectives`.
    """
    program, entry = parse(text)
    counts = runs(program, entry)
    every = list(products(program, counts))
    slow = sorted((one for one in every if one[1] == "f32"), reverse=True)
    return {
        "flops": sum(flops for flops, _, _ in every),
        "flops_float32": sum(flops for flops, _, _ in slow),
        "products": [(flops, op_name) for flops, _, op_name in slow[:5]],
        "traffic": traffic(program, counts, entry),
        "collectives": [one._asdict() for one in collectives(program, counts, devices)],
    }
