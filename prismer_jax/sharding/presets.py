"""How a training state is split over the axes fsdp and tensor of a mesh: presets by name, and rules of one's own.

    config.sharding = "zero3"                                            --config.sharding=tensor+zero1
    config.sharding = [(".*/bias", "replicate"), (".*", "fsdp")]         rules: the first that matches a name counts

Presets: `replicated`; `zero1`, `zero2` and `zero3` split the optimiser's state, the gradients too, the parameters too
(Rajbhandari et al., arXiv 1910.02054) over fsdp, or over data where fsdp has size 1; `tensor` splits attention heads,
columns of MLPs and the vocabulary by the rules of the model's family (Shoeybi et al., arXiv 1909.08053). `tensor` and
one of the others may be joined by a plus. Whatever is split, the values are those of one device but for rounding.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prismer_jax import config, registry, tree
from prismer_jax.errors import UserError, choose, nearest

Spec = str | Sequence[Any]
Rules = Sequence[tuple[str, Spec]]

STAGES = {"replicated": 0, "zero1": 1, "zero2": 2, "zero3": 3}
TENSOR = "tensor"
WHOLE = PartitionSpec()
LEAST = 2**10  # elements of an array that a preset splits: a smaller one is not worth a message

logger = logging.getLogger(__name__)


def placed(state: Mapping[str, Any], spec: str | Rules, mesh: Mesh, tensor: Rules = ()) -> Any:
    """Returns a state's shapes with shardings: its 'params', and what the optimiser made from these in its own way.

    Args:
      state: {'params', ...} of arrays or shapes; without 'opt' where only variables are wanted.
      mesh: of `sharding.make_mesh`.
      spec: the name of a preset, or rules, of the optimiser's state too: [(regex of whole names, rule)], of which the
        first that matches counts; what none matches is replicated. A rule is 'replicate'; 'fsdp' or
        'fsdp(min_size=65536)', which splits a dimension that the axis divides (see `_split`), if the array has at least
        so many elements; 'tensor(axis=-1, units=12)', which splits an axis of so many equal units (its length by
        default) if the mesh's axis divides their number, and else warns; or one entry a dimension: None, an axis, or
        several, as (None, 'tensor'), which must divide.
      tensor: the family's rules for the preset 'tensor' (models.split.tensor_rules).

    Raises:
      UserError: an unknown preset or rule, a mesh without the axis that it splits over, a regex that matches nothing,
        or a rule that does not fit the shape.
    """
    params, opt, _ = _tables(state["params"], spec, mesh, tensor)
    whole = NamedSharding(mesh, WHOLE)
    shapes = {name: x.shape for name, x in tree.flatten(state["params"]).items()}

    def place(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
        top, _, rest = name.partition("/")
        sharding = params[rest] if top == "params" else _like(rest, leaf.shape, shapes, opt) if top == "opt" else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or whole)

    return jax.tree.map(place, tree.names(state), state)


def gradients(
    params: Any, trained: Iterable[str], spec: str | Rules, mesh: Mesh, tensor: Rules = ()
) -> dict[str, NamedSharding]:
    """Returns {name: sharding} of the gradients that a spec splits: of all that is trained from stage 2 on, else none.

    Rules are of all parameters: one that matches frozen ones alone is no mistake. Raises as `placed`.
    """
    shardings = _tables(params, spec, mesh, tensor)[2]
    return {name: shardings[name] for name in trained if name in shardings}


def _tables(
    params: Any, spec: str | Rules, mesh: Mesh, tensor: Rules
) -> tuple[dict[str, NamedSharding], dict[str, NamedSharding], dict[str, NamedSharding]]:
    """Returns {name: sharding} of parameters, of what is like them in the optimiser's state, and of gradients."""
    shapes = tree.flatten(params)
    if isinstance(spec, str):
        stage, by_tensor = _parse(spec, mesh, tensor)
        whole = _specs(shapes, tensor, mesh) if by_tensor else dict.fromkeys(shapes, WHOLE)
        axis = _zero_axis(mesh)
        split = {n: _split(x.shape, axis, mesh, LEAST, whole[n]) for n, x in shapes.items()} if stage else whole
        _warn_of_large([n for n in shapes if stage and split[n] == whole[n]], shapes, f"{axis}={mesh.shape[axis]}")
        parameters, opt, gradients = split if stage >= 3 else whole, split, split if stage >= 2 else {}
    else:
        parameters = opt = _specs(shapes, spec, mesh)
        gradients = {}
    tables = ({name: NamedSharding(mesh, s) for name, s in table.items()} for table in (parameters, opt, gradients))
    return tuple(tables)


def _parse(spec: str, mesh: Mesh, tensor: Rules) -> tuple[int, bool]:
    """Returns the stage 0 to 3 of a preset, and whether it splits over the axis tensor."""
    names = spec.split("+")
    stages = [choose("sharding preset", name, {**STAGES, TENSOR: -1}) for name in names]
    if len([stage for stage in stages if stage >= 0]) > 1 or stages.count(-1) > 1:
        raise UserError(f"sharding={spec!r}: join tensor and at most one of {', '.join(STAGES)}, as 'tensor+zero1'.")
    stage, by_tensor = max(*stages, 0), -1 in stages
    if by_tensor and mesh.shape["tensor"] == 1 and mesh.size > 1:
        raise UserError(f"sharding={spec!r} splits over the axis tensor, whose size is 1: set config.mesh.tensor=2.")
    if by_tensor and not tensor:
        raise UserError(f"sharding={spec!r}: the model's family has no rules for it; give rules of your own.")
    if stage and mesh.shape[_zero_axis(mesh)] == 1 and mesh.size > 1:
        raise UserError(f"sharding={spec!r} splits over fsdp or data, whose sizes are 1: set config.mesh.fsdp=-1.")
    return stage, by_tensor


def _zero_axis(mesh: Mesh) -> str:
    return "fsdp" if mesh.shape["fsdp"] > 1 else "data"


def _like(
    name: str, shape: Sequence[int], shapes: Mapping[str, Any], shardings: Mapping[str, NamedSharding]
) -> NamedSharding | None:
    """Returns where a leaf of the optimiser's state lies: '0/mu/a/kernel' as 'a/kernel', if the shape is the same."""
    while name:
        if name in shapes and shapes[name] == shape:
            return shardings[name]
        name = name.partition("/")[2]
    return None


def _specs(shapes: Mapping[str, Any], rules: Rules, mesh: Mesh) -> dict[str, PartitionSpec]:
    matches = tree.first_match([pattern for pattern, _ in rules], shapes, "sharding rules")
    return {
        name: _partition(name, x.shape, rules[matches[name]][1], mesh) if name in matches else WHOLE
        for name, x in shapes.items()
    }


def _partition(name: str, shape: Sequence[int], spec: Spec, mesh: Mesh) -> PartitionSpec:
    if isinstance(spec, str):
        calls = registry.parse(spec)
        if len(calls) != 1:
            raise UserError(f"sharding rules: {spec!r} must be one of {', '.join(RULES)}.")
        rule, args, kwargs = calls[0]
        if args:
            raise UserError(f"sharding rules: write {spec!r} with named arguments, as 'fsdp(min_size=65536)'.")
        place = choose("sharding rule", rule, RULES)
        return config.call(place, kwargs, f"sharding rule {rule!r}", name=name, shape=shape, mesh=mesh)
    if len(spec) != len(shape):
        raise UserError(
            f"sharding rules: {tuple(spec)} has {len(spec)} entries, {name!r} has the shape {tuple(shape)}."
        )
    for entry, size in zip(spec, shape, strict=True):
        axes = [] if entry is None else [entry] if isinstance(entry, str) else entry
        for axis in axes:
            if axis not in mesh.axis_names:
                raise UserError(f"sharding rules: unknown mesh axis {axis!r}. {nearest(axis, mesh.axis_names)}")
        if size % (count := math.prod(mesh.shape[axis] for axis in axes)):
            raise UserError(f"sharding rules: {count} devices cannot share {name!r} of shape {tuple(shape)} by {spec}.")
    return PartitionSpec(*(tuple(entry) if isinstance(entry, list) else entry for entry in spec))


def _split(shape: Sequence[int], axis: str, mesh: Mesh, min_size: int, given: PartitionSpec = WHOLE) -> PartitionSpec:
    """Adds an axis to a dimension that it divides and that is not split yet: the last but one, or else the largest.

    The last but one of a kernel is what a product sums over. Split there, a kernel is gathered where it is used; split
    along the last, the compiler may gather the activations of all devices instead (XLA of jax 0.10.2 on a CPU does).
    """
    parts, taken = mesh.shape[axis], [*given, *[None] * (len(shape) - len(given))]
    fitting = [i for i, size in enumerate(shape) if taken[i] is None and size and size % parts == 0]
    if parts == 1 or not fitting or math.prod(shape) < min_size:
        return given
    chosen = max(fitting, key=lambda i: (i == len(shape) - 2, shape[i]))
    return PartitionSpec(*(axis if i == chosen else entry for i, entry in enumerate(taken)))


def _warn_of_large(names: Sequence[str], shapes: Mapping[str, Any], how: str) -> None:
    """Says what stays whole on each device although it is large: no dimension of it can be divided."""
    large = [f"{n} {[*shapes[n].shape]}" for n in names if math.prod(shapes[n].shape) >= 2**20]
    if large and not how.endswith("=1"):
        _warn_once(f"Whole on each device, as {how} divides no dimension: {', '.join(large)}.")


@functools.cache
def _warn_once(line: str) -> None:
    """Says a line once in a process: a state is placed several times, as shapes, as values and when it is restored."""
    logger.warning(line)


def _replicate(name: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    return WHOLE


def _fsdp(name: str, shape: Sequence[int], mesh: Mesh, min_size: int = 2**16) -> PartitionSpec:
    """Shards as big_vision's 'fsdp' rule, but for the choice of the dimension; small arrays are not worth a message."""
    return _split(shape, "fsdp", mesh, min_size)


def _tensor(name: str, shape: Sequence[int], mesh: Mesh, axis: int = -1, units: int = 0) -> PartitionSpec:
    """Splits one axis; heads stay whole, which is why `units` may be fewer than the axis is long."""
    if not -len(shape) <= axis < len(shape):
        raise UserError(f"sharding rules: {name!r} of shape {tuple(shape)} has no axis {axis}.")
    if (units or shape[axis]) % mesh.shape["tensor"] or shape[axis] % mesh.shape["tensor"]:
        what = f"{units} heads" if units else f"{shape[axis]} rows"
        _warn_once(f"{name} {[*shape]} is not split: {what}, tensor={mesh.shape['tensor']}.")
        return WHOLE
    return PartitionSpec(*("tensor" if i == axis % len(shape) else None for i in range(len(shape))))


RULES: dict[str, Callable[..., PartitionSpec]] = {"replicate": _replicate, "fsdp": _fsdp, "tensor": _tensor}
