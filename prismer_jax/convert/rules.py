"""Conversion of checkpoints by a table of name rules, in both directions, with every difference reported."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prismer_jax.errors import UserError

# Axes of PyTorch's array in the order of ours, and back.
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "same": ((), ()),
    "dense": ((1, 0), (1, 0)),  # [out, in] -> [in, out]
    "conv": ((2, 3, 1, 0), (3, 2, 0, 1)),  # [out, in, h, w] -> [h, w, in, out]
}
State = Mapping[str, np.ndarray]
Shapes = Mapping[str, Any]  # '/'-joined name -> anything with .shape and .dtype


@dataclass(frozen=True)
class Rule:
    """One row: a key of PyTorch's state dict, where it goes, and how its axes are laid out.

    Attributes:
      key: '{}' in it is the layer; its arrays are stacked along a new first axis.
      names: one name, or several where PyTorch packs parameters along the first axis of one array.
      layout: a name of LAYOUTS.
      dtype: of PyTorch's array where it is not ours.
      derived: the key repeats what another row holds (a tied parameter): checked when read, made again when written.
    """

    key: str
    names: tuple[str, ...]
    layout: str = "same"
    dtype: str | None = None
    derived: bool = False


@dataclass(frozen=True)
class Table:
    """The rules of an architecture.

    Attributes:
      constants: buffers that hold no knowledge: key -> (name of a parameter, function of its shape that makes them).
    """

    rules: tuple[Rule, ...]
    constants: Mapping[str, tuple[str, Callable[[tuple[int, ...]], np.ndarray]]] = field(default_factory=dict)

    def buffers(self, shapes: Shapes) -> dict[str, np.ndarray]:
        return {key: make(shapes[name].shape) for key, (name, make) in self.constants.items() if name in shapes}


@dataclass(frozen=True)
class _Entry:
    """One key of a state dict: [(name, layer or None), ...] are the parts of its array."""

    key: str
    parts: tuple[tuple[str, int | None], ...]
    rule: Rule
    shape: tuple[int, ...]


def _entries(table: Table, shapes: Shapes) -> Iterator[_Entry]:
    covered = set()
    for rule in table.rules:
        if not all(name in shapes for name in rule.names):
            continue  # a part that this model lacks
        covered.update(rule.names)
        stacked = "{}" in rule.key
        shape = shapes[rule.names[0]].shape
        layers = range(shape[0]) if stacked else (None,)
        back = LAYOUTS[rule.layout][1]
        shape = tuple(shape[1:]) if stacked else tuple(shape)
        shape = tuple(shape[axis] for axis in back) if back else shape
        if len(rule.names) > 1:
            shape = (shape[0] * len(rule.names), *shape[1:])
        for layer in layers:
            yield _Entry(rule.key.format(layer), tuple((name, layer) for name in rule.names), rule, shape)
    if left := sorted(set(shapes) - covered):
        raise ValueError(f"no conversion rule for {left}")


def key_shapes(table: Table, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Returns {key: shape} of the state dict that the parameters of these shapes convert to."""
    buffers = {key: array.shape for key, array in table.buffers(shapes).items()}
    return buffers | {entry.key: entry.shape for entry in _entries(table, shapes)}


def from_torch(state: State, table: Table, shapes: Shapes, where: str = "the checkpoint") -> dict[str, np.ndarray]:
    """Returns {'/'-joined name: array} with exactly the names, shapes and dtypes of `shapes`.

    Raises:
      UserError: keys are missing, unexpected or of another shape, or a derived key differs from what it repeats: all of
        them, grouped. `where` names the file.
    """
    out = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    problems: dict[str, list[str]] = defaultdict(list)
    known = set(table.constants)
    entries = list(_entries(table, shapes))
    for entry in sorted(entries, key=lambda entry: entry.rule.derived):  # what is repeated comes first
        known.add(entry.key)
        if entry.key not in state:
            if not entry.rule.derived:
                problems["missing"].append(entry.key)
            continue
        array = np.asarray(state[entry.key])
        if array.shape != entry.shape:
            problems[f"of shape {list(array.shape)} instead of {list(entry.shape)}"].append(entry.key)
            continue
        forth = LAYOUTS[entry.rule.layout][0]
        parts = np.split(array, len(entry.parts)) if len(entry.parts) > 1 else [array]
        for (name, layer), part in zip(entry.parts, parts, strict=True):
            part = part.transpose(forth) if forth else part
            target = out[name] if layer is None else out[name][layer]
            if not entry.rule.derived:
                target[...] = part
            elif not np.array_equal(target, part.astype(target.dtype)):
                problems["different from the parameter that they are tied to"].append(entry.key)
    problems["unexpected"] = [key for key in state if key not in known]
    if report := "; ".join(f"{len(keys)} {kind}: {grouped(keys)}" for kind, keys in problems.items() if keys):
        raise UserError(
            f"{where} does not fit the model. Of its keys {report}. Check the model's size and its experts."
        )
    return out


def to_torch(params: State, table: Table) -> dict[str, np.ndarray]:
    """Returns the state dict of {'/'-joined name: array}; the exact inverse of `from_torch`."""
    state = table.buffers(params)
    for entry in _entries(table, params):
        back = LAYOUTS[entry.rule.layout][1]
        parts = [np.asarray(params[name] if layer is None else params[name][layer]) for name, layer in entry.parts]
        parts = [part.transpose(back) if back else part for part in parts]
        array = np.concatenate(parts) if len(parts) > 1 else parts[0]
        state[entry.key] = np.ascontiguousarray(array).reshape(entry.shape).astype(entry.rule.dtype or array.dtype)
    return state


def keys_of(names: Iterable[str], table: Table, shapes: Shapes) -> set[str]:
    """Returns the keys whose arrays hold any of the parameters `names`, without the derived ones."""
    names = set(names)
    entries = _entries(table, shapes)
    return {e.key for e in entries if not e.rule.derived and any(name in names for name, _ in e.parts)}


def grouped(keys: Iterable[str]) -> str:
    """Returns 'a.*.b (12), c': keys that differ only in numbers become one, so that a report stays readable."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[re.sub(r"(?<![^.])\d+(?![^.])", "*", key)].append(key)
    return ", ".join(f"{p} ({len(group)})" if len(group) > 1 else group[0] for p, group in groups.items())
