"""Which device holds what: one mesh with the axes data, fsdp and tensor, for any number of processes.

    mesh = make_mesh({"data": -1, "fsdp": 4})
    with jax.set_mesh(mesh):
        state = placed(jax.eval_shape(init, rng), "zero3", mesh)

Axes are of type Auto: the compiler places what the program leaves open (jax.make_mesh alone would make them Explicit,
which Flax's convolutions do not support). Batches are split over data and fsdp; how parameters are, presets.py says.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from prismer_jax.errors import UserError, choose

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

_BARRIERS = itertools.count()  # a name can be waited for once


def initialize_distributed(wanted: bool | None = None) -> None:
    """Joins the other processes of a run, before any array is made; None: if JAX_COORDINATOR_ADDRESS is set."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ if wanted is None else wanted:
        importlib.import_module("prismer_jax.sharding.processes").join()


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
        choose("mesh axis", name, AXES)
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise UserError(f"Mesh axis {name!r} must have a size of at least 1, or -1 for the rest, not {size!r}.")
    rest = [name for name, size in axes.items() if size == -1]
    fixed = math.prod(size for size in axes.values() if size != -1)
    if len(rest) > 1 or len(devices) % fixed or (not rest and fixed != len(devices)):
        raise UserError(
            f"A mesh of {axes} does not fit {len(devices)} devices: the sizes must multiply to {len(devices)}, "
            "and one of them may be -1 for the rest."
        )
    shape = tuple(len(devices) // fixed if name in rest else axes.get(name, 1) for name in AXES)
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
    """Waits for the other processes of the run, all of which must call this with the same names in the same order.

    After an hour it gives up. It asks the coordination service: a collective of devices would not wait for long. On a
    CPU, Gloo's gives up after 30 s, which is less than by what compilations differ, as the cache of compiled programs
    serves process 0 alone.
    """
    from jax._src import distributed  # there is no public way to its barrier (jax 0.10 to 0.12)

    if (service := distributed.global_state.client) is not None:
        service.wait_at_barrier(f"{name}/{next(_BARRIERS)}", 3_600_000)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding by which every device holds all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding whose leading axis is split over the devices of data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_of(sharding: jax.sharding.Sharding, size: int) -> list[int]:
    """Returns which of `size` rows of an array this process's devices hold, in order: those that it has to read.

    They are all rows where each process has a part of every row, as with an axis `tensor` across processes.
    """
    held = sharding.addressable_devices_indices_map((size,)).values()
    return sorted({row for (rows,) in held for row in range(size)[rows]})


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises a UserError with the nearest valid sizes unless the devices can share each of `parts` parts of a batch."""
    if parts < 1:
        raise UserError(f"accumulate={parts}: must be at least 1.")
    unit = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * parts
    if batch_size < 1 or batch_size % unit:
        below, above = batch_size // unit * unit, max(batch_size // unit + 1, 1) * unit
        sizes = f"{below} or {above}" if below > 0 else f"{above}"
        each = f" in {parts} accumulated parts" if parts > 1 else ""
        raise UserError(f"A batch of {batch_size}{each} cannot be shared by {unit // parts} devices; use {sizes}.")


def free_axes() -> dict[str, int]:
    """Returns the sizes of the axes along which the compiler may split arrays: none without a mesh, or in shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def platform() -> str | None:
    """Returns the platform that a program is traced for: that of the mesh's devices, which may be described ones.

    Without a mesh it is that of the only device, and None where several may share an array: no kernel can be split.
    """
    if (mesh := jax.sharding.get_abstract_mesh()).empty:
        return jax.default_backend() if jax.device_count() == 1 else None
    return getattr(mesh.abstract_device, "platform", None)


def constrain(x: jax.Array) -> jax.Array:
    """Keeps an array split along its leading axis, as batches are; its other axes, and all without a mesh, stay free.

    Where weights are split over that axis, the compiler may else split what is made with them so, and send activations.
    """
    free = free_axes()
    axes = tuple(axis for axis in BATCH_AXES if axis in free)
    if (parts := math.prod(free[axis] for axis in axes)) == 1 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def gathered(kernel: jax.Array) -> jax.Array:
    """Gathers a kernel before its use: by parts, a TPU adds products up in memory, 13 times the bytes on 16 chips."""
    # No axes without a mesh; inside shard_map they are Manual; with an axis `tensor` the compiler decides.
    mesh = jax.sharding.get_abstract_mesh()
    shared = set(mesh.axis_types) == {AxisType.Auto} and mesh.size > 1 and mesh.shape.get("tensor", 1) == 1
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec()) if shared else kernel


def placed(state: Any, spec: Any, mesh: Mesh, tensor: Sequence[Any] = ()) -> Any:
    """Returns a state's shapes with shardings: as `presets.placed` for a preset or rules, else all replicated."""
    if spec and spec != "replicated":
        return importlib.import_module("prismer_jax.sharding.presets").placed(state, spec, mesh, tensor)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), state)


def gradients(params: Any, trained: Any, spec: Any, mesh: Mesh, tensor: Any = ()) -> dict[str, NamedSharding]:
    """Returns the shardings by name of the gradients of what is trained, where a preset splits them."""
    if isinstance(spec, str) and spec != "replicated":
        return importlib.import_module("prismer_jax.sharding.presets").gradients(params, trained, spec, mesh, tensor)
    return {}
