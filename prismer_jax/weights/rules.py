"""Conversion of checkpoints by a table of name rules, in both directions, with every difference reported.

Arrays are made one at a time, so that a caller who puts each where it belongs holds only one of them twice; and what is
read may be the memory map of a file.
"""

from __future__ import annotations

import functools
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.weights import wrappers

LISTED = 12  # keys, and groups of keys, that an error names

# Axes of PyTorch's array, and in the order of ours; "" leaves an array as it is.
LAYOUTS: dict[str, tuple[str, str]] = {
    "same": ("", ""),
    "dense": ("o i", "i o"),
    "conv": ("o i h w", "h w i o"),
    "conv_transpose": ("i o h w", "h w i o"),
    "conv1d": ("o i w", "w i o"),
    "leading": ("1 n d", "n d"),
    "token": ("1 1 d", "d"),
    # Of Flax files, whose stacks of layers are one array and whose heads have an axis: see Rule.sizes.
    "heads_in": ("l d n h", "l d (n h)"),
    "heads_out": ("l n h d", "l (n h) d"),
    "heads_bias": ("l n h", "l (n h)"),
    "einsum_in": ("l n d h", "l d (n h)"),
    "packed_einsum_in": ("l 1 n d h", "l d (n h)"),
    "packed": ("l 1 d f", "l d f"),
}
State = Mapping[str, np.ndarray]
Shapes = Mapping[str, Any]  # '/'-joined name -> anything with .shape and .dtype
Make = Callable[[], np.ndarray]
Fresh = Callable[[Sequence[str]], Mapping[str, Any]]  # names of parameters -> their initial values


@dataclass(frozen=True)
class Rule:
    """One row: a key of PyTorch's state dict, where it goes, and how its axes are laid out.

    Attributes:
      key: '{}' in it is the layer; its arrays are stacked along a new first axis.
      names: one name, or several where PyTorch packs parameters along the first axis of one array.
      layout: a name of LAYOUTS.
      dtype: of PyTorch's array where it is not ours.
      derived: the key repeats what another row holds (a tied parameter): checked when read, made again when written.
      default: the value where a file lacks the key, for keys that old versions of PyTorch did not save.
      first: number of the first of the stacked layers, where those before it differ in shape.
      step: from one of the stacked layers to the next, where those between them differ in shape.
      sizes: (axis, its size) of the axes that are one in our array.
      axis: along which parameters are packed.
    """

    key: str
    names: tuple[str, ...]
    layout: str = "same"
    dtype: str | None = None
    derived: bool = False
    default: float | None = None
    first: int = 0
    step: int = 1
    sizes: tuple[tuple[str, int], ...] = ()
    axis: int = 0


@dataclass(frozen=True)
class Table:
    """The rules of an architecture.

    Attributes:
      constants: buffers that hold no knowledge: key -> (name of a parameter, function of its shape that makes them).
        A file may have them or not. '{}' in the key is the layer, as in rules.
      spellings: (regex, replacement) pairs that turn the keys of older files into those of the rules.
      ignored: regexes of whole keys of parts that are of no use here.
    """

    rules: tuple[Rule, ...]
    constants: Mapping[str, tuple[str, Callable[[tuple[int, ...]], np.ndarray]]] = field(default_factory=dict)
    spellings: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def buffers(self, shapes: Shapes) -> dict[str, np.ndarray]:
        buffers = {}
        for key, (name, make) in self.constants.items():
            if name not in shapes:
                continue
            shape = tuple(shapes[name].shape)
            if "{}" in key:
                buffers |= dict.fromkeys((key.format(layer) for layer in range(shape[0])), make(shape[1:]))
            else:
                buffers[key] = make(shape)
        return buffers

    def spell(self, state: State, where: str = "the checkpoint") -> dict[str, np.ndarray]:
        """Returns the state dict under the keys of the rules, without what is ignored.

        What wrappers put before keys is taken off (see `wrappers.own_key`). Where a file has only the second of two
        tied keys, as those have that hold no array twice, it stands under the first one too.

        Raises:
          UserError: two spellings of one key are there; `where` names the file.
        """
        names: dict[str, str] = {}
        for old in state:
            if (own := wrappers.own_key(old)) is None:
                continue
            key = functools.reduce(lambda key, rule: re.sub(*rule, key), self.spellings, own)
            if any(re.fullmatch(pattern, key) for pattern in self.ignored):
                continue
            if key in names:
                raise UserError(f"{where} has {key} twice: as {names[key]} and as {old}. Save it again with only one.")
            names[key] = old
        return self._untied({key: state[old] for key, old in names.items()})

    def _untied(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the state dict with the first of tied keys wherever a file has the second, laid out alike."""
        first = {(rule.names, rule.layout): rule.key for rule in self.rules if not rule.derived}
        for rule in self.rules:
            key = first.get((rule.names, rule.layout))
            if not rule.derived or key is None:
                continue
            pattern = re.compile(re.escape(rule.key).replace(r"\{\}", r"(\d+)"))
            for match in filter(None, map(pattern.fullmatch, tuple(state))):
                state.setdefault(key.format(*match.groups()), state[match[0]])
        return state


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
        shape = _their_shape(tuple(shape[1:]) if stacked else tuple(shape), rule)
        shape = (*shape[: rule.axis], shape[rule.axis] * len(rule.names), *shape[rule.axis + 1 :]) if shape else shape
        for layer in layers:
            key = rule.key if layer is None else rule.key.format(rule.first + rule.step * layer)
            yield _Entry(key, tuple((name, layer) for name in rule.names), rule, shape)
    if left := sorted(set(shapes) - covered):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        remedy = "Convert the model without what that lacks, such as experts, adapters and packed kernels."
        raise UserError(f"The original has no {left[0]}{more}. {remedy}")


def _laid_out(array: np.ndarray, axes: str, target: str, sizes: Sequence[tuple[str, int]] = ()) -> np.ndarray:
    """Returns a view, where one can be, of an array with its axes as `target` names them."""
    return rearrange(array, f"{axes} -> {target}", **dict(sizes)) if axes else array


def _their_shape(shape: tuple[int, ...], rule: Rule) -> tuple[int, ...]:
    theirs, ours = LAYOUTS[rule.layout]
    return _laid_out(np.broadcast_to(np.float32(0), shape), ours, theirs, rule.sizes).shape


def key_shapes(table: Table, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Returns {key: shape} of the state dict that the parameters of these shapes convert to."""
    buffers = {key: array.shape for key, array in table.buffers(shapes).items()}
    return buffers | {entry.key: entry.shape for entry in _entries(table, shapes)}


def from_torch(
    state: State,
    table: Table,
    shapes: Shapes,
    where: str = "the checkpoint",
    allow: Sequence[str] = (),
    fresh: Fresh | None = None,
) -> dict[str, Make]:
    """Returns {'/'-joined name: function that makes its array}, with exactly the names, shapes and dtypes of `shapes`.

    Args:
      state: all is checked at once, without reading arrays except tied ones.
      where: names the file in errors.
      allow: regexes of whole keys that may be missing or of another shape, and then keep their initial values, or that
        may be unexpected, and then are dropped.
      fresh: gives the initial values; called at most once, where `allow` makes it necessary.

    Raises:
      UserError: keys are missing, unexpected, of another shape or kind of number, or tied keys differ: all of them,
        grouped; or a regex of `allow` matches no key.
    """
    state = table.spell(state, where)
    entries = list(_entries(table, shapes))
    tied_to = {entry.parts: entry.key for entry in entries if not entry.rule.derived}
    problems = {entry.key: _problem(entry, state, shapes, tied_to[entry.parts]) for entry in entries}
    constants = table.buffers(shapes)
    problems |= {key: "unexpected" for key in state if key not in problems and key not in constants}
    allowed = tree.first_match(allow, problems, "allow")
    groups: dict[str, list[str]] = defaultdict(list)
    for key, problem in problems.items():
        if problem and key not in allowed:
            groups[problem].append(key)
    if groups:
        raise UserError(_report(where, groups, {*constants, *(entry.key for entry in entries)}))
    usable = [e for e in entries if e.key in state and not e.rule.derived and not problems[e.key]]
    sources: dict[str, list[tuple[_Entry, int, int | None]]] = {name: [] for name in shapes}
    for entry in usable:
        for part, (name, layer) in enumerate(entry.parts):
            sources[name].append((entry, part, layer))
    lacking = {name for e in entries if problems[e.key] for name, _ in e.parts if not e.rule.derived}
    start: Mapping[str, Any] = fresh(sorted(lacking)) if lacking else {}
    defaults = {name: rule.default for rule in table.rules for name in rule.names if rule.default is not None}

    def make(name: str) -> np.ndarray:
        leaf, initial = shapes[name], start.get(name, defaults.get(name))
        out = np.empty(leaf.shape, leaf.dtype)
        if initial is not None:
            out[...] = initial
        for entry, part, layer in sources[name]:
            array = np.asarray(state[entry.key])
            piece = np.split(array, len(entry.parts), entry.rule.axis)[part] if len(entry.parts) > 1 else array
            _fill(out[...] if layer is None else out[layer, ...], _laid_out(piece, *LAYOUTS[entry.rule.layout]))
            _unmap(array)
        return out

    return {name: functools.partial(make, name) for name in shapes}


def _report(where: str, groups: Mapping[str, list[str]], expected: Collection[str]) -> str:
    """Returns the message of {what is wrong: keys}."""
    prefix = wrappers.prefix_of(groups.get("unexpected", ()), expected)
    report = [f"{len(keys)} {problem}: {grouped(keys)}" for problem, keys in groups.items()]
    if rest := sum(map(len, list(groups.values())[LISTED:])):
        report[LISTED:] = [f"{rest} more differ in other ways"]
    remedy = "Check the model's size and its experts"
    if prefix:
        remedy = f"Most have {prefix!r} before the model's own keys: save the file again without it"
    return (
        f"{where} does not fit the model. Of its keys {'; '.join(report)}. {remedy}, or allow these keys by name "
        "(--allow REGEX): what is missing then keeps its initial values."
    )


def _fill(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source. A transposed matrix goes column by column of cache lines, five times as fast."""
    if target.ndim == 2 and not source.flags.c_contiguous:
        for start in range(0, target.shape[1], 16):
            target[:, start : start + 16] = source[:, start : start + 16]
    else:
        target[...] = source


def _problem(entry: _Entry, state: State, shapes: Shapes, tied_to: str) -> str:
    """What is wrong with a key of the file, or ''."""
    if entry.key not in state:
        return "" if entry.rule.derived or entry.rule.default is not None else "missing"
    array, leaf = state[entry.key], shapes[entry.rule.names[0]]
    if array.shape != entry.shape:
        return f"of shape {list(array.shape)} instead of {list(entry.shape)}"
    if jnp.issubdtype(array.dtype, jnp.floating) != jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"of type {array.dtype} instead of {entry.rule.dtype or np.dtype(leaf.dtype)}"
    other = state.get(tied_to, array) if entry.rule.derived else array
    if other.shape == array.shape and not _equal(array, other):
        return "different from the parameter that they are tied to"
    return ""


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape have equal numbers; memory that they share is not read."""
    equal = a.__array_interface__ == b.__array_interface__ or np.array_equal(a, b, equal_nan=True)
    _unmap(a)
    _unmap(b)
    return equal


def _unmap(array: np.ndarray) -> None:
    """Lets go of the pages of the file that an array maps: read once, they would count as this process's memory."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and not array.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def to_torch(params: State, table: Table) -> dict[str, np.ndarray]:
    """Returns the state dict of {'/'-joined name: array}; the exact inverse of `from_torch`.

    Its arrays are views of the parameters, which may lie in memory in another order; only packed ones are copies.
    """
    arrays = {name: np.asarray(array) for name, array in params.items()}
    state = table.buffers(arrays)
    for entry in _entries(table, arrays):
        theirs, ours = LAYOUTS[entry.rule.layout]
        ours_of = [arrays[name][... if layer is None else layer] for name, layer in entry.parts]
        parts = [_laid_out(array, ours, theirs, entry.rule.sizes) for array in ours_of]
        array = np.concatenate(parts, entry.rule.axis) if len(parts) > 1 else parts[0]
        state[entry.key] = array.astype(entry.rule.dtype or array.dtype, copy=False)
    return state


def keys_of(names: Iterable[str], table: Table, shapes: Shapes) -> set[str]:
    """Returns the keys whose arrays hold any of the parameters `names`, without the derived ones."""
    names = set(names)
    entries = _entries(table, shapes)
    return {e.key for e in entries if not e.rule.derived and any(name in names for name, _ in e.parts)}


def grouped(keys: Iterable[str]) -> str:
    """Returns 'a.*.b (12), c and 7 more': keys that differ only in numbers become one; LISTED of these are named."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[re.sub(r"(?<![^.])\d+(?![^.])", "*", key)].append(key)
    named = [f"{p} ({len(group)})" if len(group) > 1 else group[0] for p, group in groups.items()]
    rest = sum(map(len, list(groups.values())[LISTED:]))
    return ", ".join(named[:LISTED]) + (f" and {rest} more" if rest else "")
