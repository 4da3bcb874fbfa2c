"""Which device holds what: one mesh with the axes data, fsdp and tensor, and rules by the names of parameters.

    mesh = make_mesh({"data": -1, "fsdp": 4})
    with jax.set_mesh(mesh):
        shardings = param_shardings(jax.eval_shape(init, rng), [(".*/bias", "replicate"), (".*", "fsdp")], mesh)
        params = jax.jit(init, out_shardings=shardings)(rng)

Axes are of type Auto: the compiler places what the program leaves open (jax.make_mesh alone would make them Explicit,
which Flax's convolutions do not support). Batches are split over data and fsdp, parameters over fsdp and tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from prismer_jax import config, registry, tree
from prismer_jax.errors import UserError, choose, nearest

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Spec = str | Sequence[Any]
Rules = Sequence[tuple[str, Spec]]


def initialize_distributed(wanted: bool | None = None) -> None:
    """Joins the other processes of a multi-host run; to be called before any array is made.

    Args:
      wanted: True or False; None looks whether JAX_COORDINATOR_ADDRESS is set. Where and how many the others are, JAX
        finds out from the cluster (Cloud TPU, Slurm, Open MPI) or from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
        JAX_PROCESS_ID.

    Raises:
      UserError: the others cannot be found.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not (wanted if wanted is not None else address):
        return

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdigit():
            raise UserError(f"{name} is {text!r}; it must be a number.")
        return None if text is None else int(text)

    try:
        jax.distributed.initialize(address, number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID"))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"Cannot join the other processes: {error} Set JAX_COORDINATOR_ADDRESS or run one.") from error


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of all devices.

    Args:
      axes: {name: size} with names from data, fsdp and tensor; one size may be -1, the devices that are left. Axes not
        named have size 1; None is {"data": -1}.
      devices: default all.

    Raises:
      UserError: an unknown axis, or sizes whose product is not the number of devices.
    """
    axes = {"data": -1} if axes is None else dict(axes)
    devices = jax.devices() if devices is None else list(devices)
    for name, size in axes.items():
        choose("mesh axis", name, dict.fromkeys(AXES))
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise UserError(f"Mesh axis {name!r} must have a size of at least 1, or -1 for the rest, not {size!r}.")
    rest = [name for name, size in axes.items() if size == -1]
    known = math.prod(size for size in axes.values() if size != -1)
    if len(rest) > 1 or len(devices) % known or (not rest and known != len(devices)):
        raise UserError(
            f"A mesh of {axes} does not fit {len(devices)} devices: the sizes must multiply to {len(devices)}, "
            "and one of them may be -1 for the rest."
        )
    shape = tuple(len(devices) // known if name in rest else axes.get(name, 1) for name in AXES)
    types = (AxisType.Auto,) * len(AXES)
    if devices[0].platform == "tpu" and (slices := len({getattr(d, "slice_index", 0) for d in devices})) > 1:
        if shape[0] % slices:
            raise UserError(
                f"{slices} slices must share the mesh's axis data, of size {shape[0]}: a multiple of {slices}."
            )
        within = shape[0] // slices, *shape[1:]  # the network between slices is slow: gradients alone go over it
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
        return Mesh(grid, AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


def barrier(name: str) -> None:
    """Waits for the other processes of the run, all of which must call this with the same name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices of data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises a UserError with the nearest valid sizes unless the devices can share each of `parts` parts of a batch."""
    unit = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * parts
    if batch_size < 1 or batch_size % unit:
        below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
        sizes = f"{below} or {above}" if below > 0 else f"{above}"
        each = f" in {parts} accumulated parts" if parts > 1 else ""
        raise UserError(f"A batch of {batch_size}{each} cannot be shared by {unit // parts} devices; use {sizes}.")


def constrain(x: Any) -> Any:
    """Splits the leading axis of every array over the devices; does nothing where no mesh is set (jax.set_mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
    axes = tuple(axis for axis in BATCH_AXES if axis in auto)  # none without a mesh; inside shard_map they are Manual
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def param_shardings(shapes: Any, rules: Rules, mesh: Mesh) -> Any:
    """Returns the tree of NamedShardings for parameters.

    Args:
      shapes: arrays or ShapeDtypeStructs.
      rules: [(regex of whole names, spec)], the first that matches counts; what none matches is replicated. A spec is
        'replicate'; 'fsdp' or 'fsdp(min_size=65536)', which splits the largest dimension that the axis divides, if the
        array has at least so many elements; or one entry a dimension: None, an axis, or several, as (None, 'tensor').
      mesh: of `make_mesh`.

    Raises:
      UserError: a regex matches nothing, or a spec is unknown or does not fit the shape.
    """
    flat = tree.flatten(shapes)
    matches = tree.first_match([pattern for pattern, _ in rules], flat, "sharding rules")
    specs = {
        name: _partition(name, x.shape, rules[matches[name]][1], mesh) if name in matches else PartitionSpec()
        for name, x in flat.items()
    }
    return jax.tree.map(lambda name: NamedSharding(mesh, specs[name]), tree.names(shapes))


def shardings_like(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Returns shardings for a state made from parameters, such as an optimiser's.

    A leaf whose name ends with that of a parameter and whose shape equals it lies as that parameter does
    ('0/mu/a/kernel' as 'a/kernel'); all else is replicated.
    """
    places = jax.tree.leaves(shardings)
    table = {name: (x.shape, s) for (name, x), s in zip(tree.flatten(params).items(), places, strict=True)}

    def place(name: str, leaf: Any) -> NamedSharding:
        while name:
            if name in table and table[name][0] == leaf.shape:
                return table[name][1]
            name = name.partition("/")[2]
        return replicated(mesh)

    return jax.tree.map(place, tree.names(state), state)


def placed(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Returns a state's shapes with shardings: its 'params' by the rules, and what is made from them like them."""
    places = shardings_like(state, state["params"], param_shardings(state["params"], rules, mesh), mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)


def _partition(name: str, shape: Sequence[int], spec: Spec, mesh: Mesh) -> PartitionSpec:
    if isinstance(spec, str):
        calls = registry.parse(spec)
        if len(calls) != 1:
            raise UserError(f"sharding rules: {spec!r} must be one of {', '.join(RULES)}.")
        rule, args, kwargs = calls[0]
        if args:
            raise UserError(f"sharding rules: write {spec!r} with named arguments, as 'fsdp(min_size=65536)'.")
        place = choose("sharding rule", rule, RULES)
        return config.call(place, kwargs, f"sharding rule {rule!r}", shape=shape, mesh=mesh)
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


def _replicate(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    return PartitionSpec()


def _fsdp(shape: Sequence[int], mesh: Mesh, min_size: int = 2**16) -> PartitionSpec:
    """As big_vision's 'fsdp' rule: the largest dimension that divides; small arrays are not worth a message."""
    parts = mesh.shape["fsdp"]
    fitting = [i for i, size in enumerate(shape) if size and size % parts == 0]
    if parts == 1 or not fitting or math.prod(shape) < min_size:
        return PartitionSpec()
    largest = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))


RULES = {"replicate": _replicate, "fsdp": _fsdp}
